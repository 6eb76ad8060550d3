"""Randomness that depends on what it is for, not on what was drawn before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw by a seed made of ``parts`` within the block, on the CPU, then go on as before.

    Python's, NumPy's and PyTorch's generators are all seeded: transforms draw from any of them.

    Example:
        >>> with seeded(0, "image", 7):
        ...     first = torch.rand(1)
        >>> with seeded(0, "image", 7):
        ...     torch.equal(first, torch.rand(1))
        True
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not those of GPUs
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
