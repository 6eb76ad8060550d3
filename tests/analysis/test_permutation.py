"""Groups that were given: exact p-values, and chance is not taken for groups."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigtool.analysis.permutation import compare_groups, profile_distances
from aigtool.errors import UserError
from tests.analysis.made import often, planted


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


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_groups_of_no_meaning_are_seldom_taken_for_some(level: float) -> None:
    random = np.random.default_rng(0)
    groups = [0, 0, 0, 0, 1, 1, 1, 2]
    ps = [compare_groups(profile_distances(random.random((8, 5))), groups).p for _ in range(400)]
    assert often(ps, level) <= level


def test_groups_of_no_meaning_are_seldom_taken_for_some_where_labelings_are_drawn() -> None:
    random = np.random.default_rng(0)
    groups = [0] * 8 + [1] * 8  # 12,870 labelings
    ps = [
        compare_groups(profile_distances(random.random((16, 5))), groups, draws=99, seed=seed).p
        for seed in range(400)
    ]
    assert often(ps, 0.05) <= 0.05
    assert often(ps, 0.2) <= 0.2
