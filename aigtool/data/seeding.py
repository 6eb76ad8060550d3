"""Randomness that depends on what it is for, not on what was drawn before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*parts: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Draw by a seed made of ``parts`` within the block, then go on as before.

    Python's, NumPy's and PyTorch's generators are all seeded: transforms draw from any of them. On
    a GPU only draws on ``device`` are, if it is given.

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
    gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if gpu else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not those of all GPUs
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
