"""Groups that were planted are found, and chance is not taken for groups."""

import numpy as np
import pytest

from aigtool.analysis.clustering import cluster, find_groups
from aigtool.errors import UserError
from tests.analysis.made import often, planted, traced
from tests.analysis.test_rates import make_trace


def test_planted_groups_are_found_and_told_from_chance() -> None:
    rates, groups = planted()
    found = find_groups(traced(rates, images=40, seed=0), draws=99)
    assert found.classes == tuple(range(10))
    assert found.groups == tuple(groups)
    assert found.test.p == found.test.least_p == 0.01
    assert found.test.ratio > 2


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
