"""Groups of classes that clustering finds, tested on images that did not make them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.metrics import silhouette_score

from aigtool.analysis.permutation import (
    Floats,
    GroupTest,
    Integers,
    distance_ratio,
    mean_distances,
    profile_distances,
)
from aigtool.analysis.rates import sums_by
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace

MOST_IMAGES = 200_000
"""Of more images than these, so many are drawn at random for the test."""
MOST_GROUPS = 6
"""Classes are parted into as many groups as this at most."""


@dataclass(frozen=True)
class FoundGroups:
    """Groups that clustering found, and the test of them on images that did not make them.

    Attributes:
        classes: Labels of the classes that were parted: those with at least two images.
        groups: Each one's group, numbered from 0.
        test: On the other half of each class's images.
    """

    classes: tuple[int, ...]
    groups: tuple[int, ...]
    test: GroupTest


def find_groups(
    trace: ExecutionTrace, count: int | None = None, *, draws: int = 199, seed: int = 0
) -> FoundGroups:
    """Part the classes by clustering one half of each one's images, and test it on the other.

    A test on the data that made the groups would find any noise parted. So would one on new images
    of the same classes by permutation over classes, for classes do differ; what is asked is
    whether labels say anything of what is executed. So the same is done, clustering and all, with
    class labels permuted among images.

    Args:
        trace: Of a network with gates; of a large one, ``MOST_IMAGES`` images.
        count: Number of groups; by default the one of 2 to 6 with the best silhouette.
        draws: Permutations.
        seed: Of the halves and of the permutations.

    Raises:
        UserError: Fewer than three classes have two images, or ``count`` is not from 2 to one less
            than there are classes.
    """
    random = np.random.default_rng(seed)
    all_labels, decided = trace.images["label"].to_numpy(), trace.executed
    if len(all_labels) > MOST_IMAGES:
        drawn = np.sort(random.choice(len(all_labels), MOST_IMAGES, replace=False))
        all_labels, decided = all_labels[drawn], decided[drawn]
    labels, sizes = np.unique(all_labels, return_counts=True)
    labels = labels[sizes > 1]
    if len(labels) < 3:
        raise UserError(
            f"groups of {len(labels)} classes with at least two images: expected three or more"
        )
    if count is not None and not 2 <= count < len(labels):
        raise UserError(f"{count} groups of {len(labels)} classes: expected 2 to {len(labels) - 1}")
    chosen = np.isin(all_labels, labels)
    executed = decided[chosen].astype(np.float32)
    number = np.searchsorted(labels, all_labels[chosen])
    halves = 2 * number + _halved(number, random)
    groups, between, within = _parted(executed, halves, count)
    ratios = []
    for _ in range(draws):
        _, *apart = _parted(executed, random.permutation(halves), count)
        ratios.append(distance_ratio(*apart))
    own = distance_ratio(between, within)
    as_far = sum(ratio >= own * (1 - 1e-9) for ratio in ratios)
    p = (1 + as_far) / (1 + draws)
    test = GroupTest(between, within, p, 1 / (1 + draws), 1 + draws, enumerated=False)
    return FoundGroups(tuple(labels.tolist()), tuple(groups.tolist()), test)


def _parted(
    executed: npt.NDArray[np.float32], halves: Integers, count: int | None
) -> tuple[Integers, float, float]:
    """Cluster the even halves' rates; return the groups and the distances of the odd halves."""
    images = np.bincount(halves)
    rates = sums_by(halves, executed, len(images)) / images[:, None]
    made, judged = rates[::2], rates[1::2]
    groups = cluster(made, count)
    return groups, *mean_distances(profile_distances(judged), groups)


def class_tree(rates: Floats) -> Floats:
    """Return the tree that Ward's method makes of classes, those next to each other alike.

    Args:
        rates: ``(classes, gates)``.

    Returns:
        ``(classes - 1, 4)``, the merges, as scipy's ``linkage`` gives them; leaves in the order in
        which neighbours differ least (Bar-Joseph, Gifford and Jaakkola, 2001).
    """
    if len(rates) < 2:
        return np.zeros((0, 4))
    tree: Floats = linkage(rates, "ward", optimal_ordering=True)
    return tree


def class_order(tree: Floats) -> Integers:
    """Return the classes in the order of a tree's leaves.

    Example:
        >>> class_order(class_tree(np.array([[0.1], [0.9], [0.2], [0.8]]))).tolist()
        [1, 3, 2, 0]
    """
    order: Integers = leaves_list(tree) if len(tree) else np.zeros(1, np.intp)
    return order


def tree_branches(tree: Floats, most: int) -> dict[int, Integers]:
    """Return the classes of so many branches, those that a tree's last merges join.

    Args:
        tree: Of ``class_tree``.
        most: Branches; each class is one where there are no more.

    Returns:
        By scipy's number of the branch its classes, all in the order of the tree's leaves.

    Example:
        >>> tree = class_tree(np.array([[0.1], [0.9], [0.2], [0.8]]))
        >>> [classes.tolist() for classes in tree_branches(tree, 3).values()]
        [[1, 3], [2], [0]]
    """
    classes = len(tree) + 1
    members = {number: [number] for number in range(classes)}
    for number, (one, other) in enumerate(tree[: max(0, classes - most), :2].astype(int), classes):
        members[number] = members.pop(one) + members.pop(other)
    place = np.argsort(class_order(tree))
    ordered = {number: np.array(sorted(part, key=place.item)) for number, part in members.items()}
    return dict(sorted(ordered.items(), key=lambda branch: place.item(branch[1][0])))


def tree_links(tree: Floats, branches: Sequence[int]) -> list[list[tuple[float, float]]]:
    """Return how branches are joined, to be drawn: scipy's ``dendrogram`` recurses too deep.

    Args:
        tree: Of ``class_tree``.
        branches: Their numbers, of ``tree_branches``, in the order of their rows.

    Returns:
        Each merge as four points, their height in the tree and their row.

    Example:
        >>> tree_links(np.array([[0.0, 1.0, 0.5, 2.0]]), [1, 0])
        [[(0.0, 1.0), (0.5, 1.0), (0.5, 0.0), (0.0, 0.0)]]
    """
    at = {number: (0.0, float(row)) for row, number in enumerate(branches)}
    links = []
    first = len(tree) + 1 - len(branches)
    for number, merge in enumerate(tree[first:], len(tree) + 1 + first):
        (low, one), (high, other) = at[int(merge[0])], at[int(merge[1])]
        height = float(merge[2])
        links.append([(low, one), (height, one), (height, other), (high, other)])
        at[number] = (height, (one + other) / 2)
    return links


def cluster(rates: Floats, count: int | None = None) -> Integers:
    """Part classes by their rate profiles, by Ward's method.

    Args:
        rates: ``(classes, gates)``, of three classes at least.
        count: Number of groups; by default the one of 2 to 6 with the best silhouette.

    Returns:
        Each class's group; the first class's is 0, and so on in their order.

    Example:
        >>> cluster(np.array([[0.1, 0.9], [0.9, 0.1], [0.2, 0.9], [0.8, 0.2]])).tolist()
        [0, 1, 0, 1]
    """
    tree = linkage(rates, "ward")
    sizes = range(2, min(MOST_GROUPS, len(rates) - 1) + 1) if count is None else [count]
    found = [_cut(tree, size) for size in sizes]
    if len(found) == 1:
        return found[0]
    distances = profile_distances(rates)
    return max(found, key=lambda groups: silhouette_score(distances, groups, metric="precomputed"))


def _cut(tree: Floats, size: int) -> Integers:
    """Return each class's group, numbered as they come."""
    groups = np.empty(len(tree) + 1, np.intp)
    for number, part in enumerate(sorted(tree_branches(tree, size).values(), key=min)):
        groups[part] = number
    return groups


def _halved(labels: Integers, random: np.random.Generator) -> Integers:
    """Return 0 or 1 an image, half of each class's images each, drawn at random."""
    shuffled = random.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[order], labels[order])
    halves = np.empty(len(labels), np.intp)
    halves[order] = (np.arange(len(labels)) - starts) % 2
    return halves
