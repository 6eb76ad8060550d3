"""Groups that were planted are found, and chance is not taken for groups."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, dendrogram, leaves_list

from aigtool.analysis.clustering import (
    class_tree,
    cluster,
    find_groups,
    tree_branches,
    tree_links,
)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_chance_has_no_more_groups_where_their_number_is_chosen() -> None:
    ps = [
        find_groups(traced(np.full((6, 4), 0.5), images=8, seed=seed), draws=19, seed=seed).test.p
        for seed in range(100)
    ]
    assert often(ps, 0.2) <= 0.2
    assert np.mean(np.array(ps) <= 0.2) > 0.05


def test_a_trees_last_merges_join_its_branches() -> None:
    """Against scipy's own way of cutting a tree, and its way to the root."""
    rates = np.random.default_rng(0).random((12, 3))
    tree = class_tree(rates)
    for most in (1, 4, 12, 20):
        branches = tree_branches(tree, most)
        cut = cut_tree(tree, min(most, 12))[:, 0]
        assert [len({*cut[part]}) for part in branches.values()] == [1] * min(most, 12)
        assert np.concatenate([*branches.values()]).tolist() == leaves_list(tree).tolist()
        links = tree_links(tree, [*branches])
        assert [link[1][0] for link in links] == tree[12 - len(branches) :, 2].tolist()
    drawn = dendrogram(tree, no_plot=True)
    ours = {tuple(np.round([y for _, y in link], 6)) for link in tree_links(tree, [*branches])}
    theirs = {tuple(np.round((np.array(rows) - 5) / 10, 6)) for rows in drawn["icoord"]}
    assert {tuple(sorted(link)) for link in ours} == {tuple(sorted(link)) for link in theirs}


def test_classes_that_are_alike_make_a_deep_tree() -> None:
    tree = class_tree(np.repeat([[0.0], [1.0]], [1500, 1], axis=0))
    branches = tree_branches(tree, 1501)
    assert len(tree_links(tree, [*branches])) == 1500


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
