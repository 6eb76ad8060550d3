"""Which of several processes this is."""

import os

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
"""What processes need to find one another; some clusters set a part of it for any job."""


def place() -> tuple[int, int]:
    """Return which process ``torchrun`` launched this one as, from 0, and of how many.

    Example:
        >>> place()
        (0, 1)
    """
    rank, count, address = (os.environ.get(name, "") for name in _TOLD)
    if not (rank.isdecimal() and count.isdecimal() and address):
        return 0, 1
    return int(rank), int(count)
