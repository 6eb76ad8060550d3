"""Times of calls that take turns."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")


def take_turns(
    calls: Mapping[Key, Callable[[], Callable[[], object]]], rounds: int, *, seed: int = 0
) -> dict[Key, npt.NDArray[np.float64]]:
    """Time calls that take turns, so that whatever slows a machine for a while slows all of them.

    Args:
        calls: Each gets ready, untimed, and returns what to time, which waits for its result.
        rounds: Turns that each gets, in an order drawn anew each round.
        seed: Of the orders.

    Returns:
        By call, ``(rounds,)``, milliseconds.

    Example:
        >>> from functools import partial
        >>> ten = partial(time.sleep, 0.01)
        >>> times = take_turns({"none": lambda: time.time, "ten": lambda: ten}, rounds=3)
        >>> times["none"].shape, bool(times["ten"].min() > 9)
        ((3,), True)
    """
    draw = np.random.default_rng(seed)
    names = list(calls)
    times: dict[Key, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for number in draw.permutation(len(names)):
            call = calls[names[number]]()
            start = time.perf_counter()
            call()
            times[names[number]].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(listed) for name, listed in times.items()}
