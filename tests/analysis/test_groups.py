"""Groups that were planted are found, and chance is not taken for groups."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigtool.analysis.groups import cluster, compare_groups, find_groups, profile_distances
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace
from tests.analysis.test_rates import make_trace


def traced(rates: np.ndarray, images: int, seed: int) -> ExecutionTrace:
    """Return a trace of so many images of each class, with these rates ``(classes, gates)``."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(rates)), images))
    executed = random.random((len(labels), rates.shape[1])) < rates[labels]
    return make_trace(executed, labels, np.zeros(len(labels), int), len(rates))


def planted(classes: int = 10, gates: int = 12) -> tuple[np.ndarray, list[int]]:
    """Return rates of two groups, of four and of the other classes, and the groups."""
    groups = [0, 1, 1, 0, 1, 1, 0, *[1] * (classes - 8), 0]
    rates = np.where(np.array(groups)[:, None] == np.arange(gates) % 2, 0.7, 0.3)
    return rates, groups


def test_planted_groups_are_found_and_told_from_chance() -> None:
    rates, groups = planted()
    found = find_groups(traced(rates, images=40, seed=0), draws=99)
    assert found.classes == tuple(range(10))
    assert found.groups == tuple(groups)
    assert found.test.p == found.test.least_p == 0.01
    assert found.test.ratio > 2


def test_given_groups_have_the_least_p_that_they_can() -> None:
    rates, groups = planted()
    test = compare_groups(profile_distances(rates), groups)
    assert (test.labelings, test.enumerated, test.p) == (210, True, 1 / 210)
    assert test.p == test.least_p
    assert test.within == 0
    assert test.between == pytest.approx(0.4)


def test_groups_of_one_size_swap_their_labels() -> None:
    rates = np.repeat([[0.2], [0.8]], 3, axis=0)
    test = compare_groups(profile_distances(rates), [0, 0, 0, 1, 1, 1])
    assert (test.labelings, test.p, test.least_p) == (20, 0.1, 0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=6), st.integers(0, 99))
def test_every_labeling_counts_alike(groups: list[int], seed: int) -> None:
    """Against all permutations of the classes, one after the other."""
    rates = np.random.default_rng(seed).random((len(groups), 3))
    distances = profile_distances(rates)
    if len({*groups}) in (1, len(groups)):
        with pytest.raises(UserError, match="expected two groups or more"):
            compare_groups(distances, groups)
        return

    def within(labels: tuple[int, ...]) -> float:
        pairs = [
            distances[a, b] for a in range(len(labels)) for b in range(a) if labels[a] == labels[b]
        ]
        return float(np.mean(pairs))

    own = within(tuple(groups))
    as_far = [within(labels) <= own + 1e-9 for labels in permutations(groups)]
    test = compare_groups(distances, groups)
    assert test.p == pytest.approx(np.mean(as_far))
    assert test.within == pytest.approx(own)
    assert test.p >= test.least_p


def test_labelings_are_drawn_where_they_are_too_many() -> None:
    rates, groups = planted(classes=24)
    test = compare_groups(profile_distances(rates), groups, draws=499)
    assert (test.labelings, test.enumerated, test.p) == (500, False, 1 / 500)


def often(ps: list[float], level: float) -> float:
    """Return the share of p-values at or under a level, less three standard errors of it."""
    return float(np.mean(np.array(ps) <= level)) - 3 * (level * (1 - level) / len(ps)) ** 0.5


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_groups_of_no_meaning_are_seldom_taken_for_some(level: float) -> None:
    random = np.random.default_rng(0)
    groups = [0, 0, 0, 0, 1, 1, 1, 2]
    ps = [compare_groups(profile_distances(random.random((8, 5))), groups).p for _ in range(400)]
    assert often(ps, level) <= level


def test_found_groups_of_no_meaning_are_seldom_taken_for_some() -> None:
    ps = [
        find_groups(
            traced(np.full((6, 4), 0.5), images=8, seed=seed), 2, draws=19, seed=seed
        ).test.p
        for seed in range(200)
    ]
    for level in (0.05, 0.2):
        assert often(ps, level) <= level
    assert np.mean(np.array(ps) <= 0.2) > 0.1  # and not for want of any power


def test_groups_are_asked_for_by_number() -> None:
    rates, _ = planted()
    assert len({*find_groups(traced(rates, images=20, seed=1), 3, draws=1).groups}) == 3
    with pytest.raises(UserError, match="10 groups of 10 classes: expected 2 to 9"):
        find_groups(traced(rates, images=2, seed=1), 10)
    with pytest.raises(UserError, match="groups of 2 classes with at least two images"):
        find_groups(traced(rates[:2], images=2, seed=1))


def test_classes_of_one_image_are_left_out() -> None:
    trace = traced(planted()[0], images=4, seed=0)
    labels = trace.images["label"]
    trace = make_trace(
        trace.executed, np.where(labels == 3, 11, labels), np.zeros(len(labels), int), 12
    )
    first = int(np.flatnonzero(labels == 4)[0])
    alone = np.where((labels == 4) & (np.arange(len(labels)) != first), 5, trace.images["label"])
    found = find_groups(make_trace(trace.executed, alone, np.zeros(len(labels), int), 12), draws=1)
    assert found.classes == (0, 1, 2, 5, 6, 7, 8, 9, 11)


def test_classes_that_are_all_alike_do_not_part() -> None:
    assert len({*cluster(np.zeros((5, 3))).tolist()}) == 2
    found = find_groups(traced(np.ones((5, 3)), images=4, seed=0), draws=9)
    assert (found.test.p, found.test.between, found.test.within) == (1, 0, 0)
