"""Which of several processes this is."""

import os


def place() -> tuple[int, int]:
    """Return which process ``torchrun`` launched this one as, from 0, and of how many.

    Example:
        >>> place()
        (0, 1)
    """
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
