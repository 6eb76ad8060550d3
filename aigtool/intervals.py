"""Intervals of shares that were counted, and tests between them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, norm


def wilson_interval(
    successes: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the ends of the Wilson score interval of a share.

    E. B. Wilson, Journal of the American Statistical Association, 1927. Unlike the share plus and
    minus standard errors, it stays within 0..1 and is of use where few or all of the trials
    succeed.

    Args:
        successes: Counts, of any shape.
        trials: Counts that broadcast with them; where there is none, the interval is 0..1.
        confidence: Share of the intervals that hold the true share, 0..1.

    Returns:
        The lower and the upper ends.

    Example:
        >>> low, high = wilson_interval([0, 5, 10], 10)
        >>> low.round(3), high.round(3)
        (array([0.   , 0.237, 0.722]), array([0.278, 0.763, 1.   ]))
    """
    count, total = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    z2: Any = norm.ppf((1 + confidence) / 2) ** 2
    center = (count + z2 / 2) / (total + z2)
    spread = np.sqrt(z2 * (count * (total - count) / np.maximum(total, 1) + z2 / 4)) / (total + z2)
    low = np.where(count == 0, 0.0, center - spread)
    high = np.where(count == total, 1.0, center + spread)
    return low, high


def mcnemar(right: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> tuple[int, int, float]:
    """Compare two answers to each of the same images by McNemar's test, exactly.

    Q. McNemar, Psychometrika, 1947: the images that both get right, or wrong, say nothing; of the
    others half would fall to either side if neither were better.

    Args:
        right: ``(images,)``, whether each answer is right.
        other: The same of the other.

    Returns:
        The images that only the first got right, those that only the other did, and the p-value of
        both sides.

    Example:
        >>> ours, theirs = np.array([True] * 7 + [False]), np.array([False] * 6 + [True] * 2)
        >>> mcnemar(ours, theirs)
        (6, 1, 0.125)
    """
    ours, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    tail = binom.cdf(min(ours, theirs), ours + theirs, 0.5)
    return ours, theirs, float(min(1.0, 2 * tail))
