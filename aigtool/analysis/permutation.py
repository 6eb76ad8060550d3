"""Do groups of classes part in what they execute? A test by permutation over classes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial, inf, prod

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

from aigtool.errors import UserError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

ENUMERATED = 10_000
"""Where there are fewer ways to label classes than this, all are tried."""


@dataclass(frozen=True)
class GroupTest:
    """How far apart groups of classes are, and how often chance would part them as far.

    Attributes:
        between: Mean distance of the rate profiles of classes of different groups, 0..1.
        within: Of classes of one group.
        p: Share of the labelings of no meaning that part as far, this one among them.
        least_p: The smallest that it could be.
        labelings: How many were compared with, this one among them.
        enumerated: Whether these are all that there are.
    """

    between: float
    within: float
    p: float
    least_p: float
    labelings: int
    enumerated: bool

    @property
    def ratio(self) -> float:
        """``between / within``: 1 where groups mean nothing."""
        return distance_ratio(self.between, self.within)


def distance_ratio(between: float, within: float) -> float:
    """Return how many times as far classes of different groups are as those of one.

    Example:
        >>> distance_ratio(0.75, 0.25), distance_ratio(0.75, 0.0), distance_ratio(0.0, 0.0)
        (3.0, inf, 1.0)
    """
    if within:
        return between / within
    return inf if between else 1.0


def profile_distances(rates: Floats) -> Floats:
    """Return the distances of rate profiles: the root mean square difference over gates, 0..1.

    Args:
        rates: ``(classes, gates)``.

    Returns:
        ``(classes, classes)``.

    Example:
        >>> profile_distances(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    distances: Floats = squareform(pdist(rates)) / np.sqrt(max(1, rates.shape[1]))
    return distances


def compare_groups(
    distances: Floats, groups: Sequence[int], *, draws: int = ENUMERATED - 1, seed: int = 0
) -> GroupTest:
    """Test groups that were given, by permutation over classes.

    Were the groups of no meaning, any other classes could bear their labels: all ways to hand the
    labels out are compared where there are fewer than 10,000, else so many drawn at random. The
    test is exact for groups that were not chosen by looking at these rates.

    Args:
        distances: ``(classes, classes)``, of their rate profiles.
        groups: Each class's group.
        draws: Labelings drawn where there are too many to try all.
        seed: Of the draws.

    Returns:
        Distances, and the p-value of a mean distance within groups as small as this.

    Raises:
        UserError: There are fewer than two groups, or all have a single class.

    Example:
        >>> rates = np.array([[0.1, 0.9], [0.2, 0.9], [0.1, 0.8], [0.9, 0.1], [0.8, 0.2]])
        >>> test = compare_groups(profile_distances(rates), [0, 0, 0, 1, 1])
        >>> test.p, test.labelings, test.enumerated, round(test.ratio)
        (0.1, 10, True, 8)
    """
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    between, within = mean_distances(distances, labels)
    total = _count_labelings(labels)
    enumerated = total < ENUMERATED
    others = _every_labeling(labels) if enumerated else _drawn(labels, draws, seed)
    sums = np.concatenate([_within_sums(distances, block) for block in _blocks(others)])
    own = _within_sums(distances, labels[None])[0]
    as_far = int((sums <= own + 1e-9 * abs(own)).sum())
    if enumerated:
        return GroupTest(between, within, as_far / total, _alike(labels) / total, total, enumerated)
    tried = 1 + draws
    return GroupTest(between, within, (1 + as_far) / tried, 1 / tried, tried, enumerated)


def mean_distances(distances: Floats, labels: Integers) -> tuple[float, float]:
    """Return the mean distance between groups and within them.

    Args:
        distances: ``(classes, classes)``.
        labels: ``(classes,)``, groups numbered from 0.

    Raises:
        UserError: There are fewer than two groups, or all have a single class.

    Example:
        >>> rates = np.array([[0.0], [0.5], [1.0]])
        >>> mean_distances(profile_distances(rates), np.array([0, 0, 1]))
        (0.75, 0.5)
    """
    same = labels[:, None] == labels
    upper = np.triu(np.ones_like(same), 1)
    if not (upper & same).any() or not (upper & ~same).any():
        raise UserError(
            f"{labels.max() + 1} groups of {len(labels)} classes: expected two groups or more, one "
            "of them of two classes or more"
        )
    return float(distances[upper & ~same].mean()), float(distances[upper & same].mean())


def _within_sums(distances: Floats, labels: Integers) -> Floats:
    """Return the sum of distances within groups, of each labeling: ``(labelings, classes)``."""
    member = (labels[:, :, None] == np.arange(labels.max() + 1)).astype(np.float64)
    sums: Floats = np.einsum("lcg,lcg->l", member, np.matmul(distances, member))
    return sums


def _count_labelings(labels: Integers) -> int:
    return factorial(len(labels)) // prod(map(factorial, np.bincount(labels).tolist()))


def _alike(labels: Integers) -> int:
    """Return how many labelings part the classes as these do: groups of one size swap labels."""
    return prod(map(factorial, Counter(np.bincount(labels).tolist()).values()))


def _every_labeling(labels: Integers) -> Iterator[Integers]:
    """Yield each way to hand out labels, groups keeping their sizes."""
    sizes = np.bincount(labels).tolist()

    def handed(free: tuple[int, ...], group: int, made: Integers) -> Iterator[Integers]:
        if group == len(sizes) - 1:
            last = made.copy()
            last[list(free)] = group
            yield last
            return
        for chosen in combinations(free, sizes[group]):
            given = made.copy()
            given[list(chosen)] = group
            yield from handed(tuple(c for c in free if c not in chosen), group + 1, given)

    yield from handed(tuple(range(len(labels))), 0, np.zeros_like(labels))


def _drawn(labels: Integers, draws: int, seed: int) -> Iterator[Integers]:
    random = np.random.default_rng(seed)
    return (random.permutation(labels) for _ in range(draws))


def _blocks(labelings: Iterator[Integers], entries: int = 2_000_000) -> Iterator[Integers]:
    """Yield labelings stacked, as many as take little memory."""
    block: list[Integers] = []
    for labeling in labelings:
        block.append(labeling)
        if len(block) * len(labeling) * (labeling.max() + 1) >= entries:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)
