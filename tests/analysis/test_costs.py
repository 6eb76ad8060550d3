"""What images cost: by hand, and with a planted hard class."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from scipy.stats import ttest_ind

from aigtool.analysis.costs import cost_by_confidence, cost_of_errors, cost_table
from aigtool.trace import ExecutionTrace
from tests.analysis.test_rates import make_trace, traces


def hard_class(seed: int = 0, *, costly_errors: float = 0.0) -> ExecutionTrace:
    """Return a trace whose class 3 costs more and is often wrong, in each class alike or not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, 2000)
    wrong = random.random(2000) < np.where(labels == 3, 0.5, 0.1)
    rates = np.where(labels == 3, 0.8, 0.5) + costly_errors * wrong
    executed = random.random((2000, 20)) < rates[:, None]
    return make_trace(executed, labels, wrong.astype(int), 5)


def test_a_planted_hard_class_costs_most() -> None:
    table = cost_table(hard_class()).set_index("images")
    assert table["blocks_mean"].idxmax() == "class: class 3"
    assert table.loc["class: class 3", "blocks_mean"] == pytest.approx(16, abs=0.3)
    assert table.loc["right", "count"] + table.loc["wrong", "count"] == 2000


def test_errors_that_cost_more_only_by_their_class_are_told_from_others() -> None:
    alike = cost_of_errors(hard_class())
    assert alike["difference"] > 5 * alike["stderr"]
    assert abs(alike["difference_within_classes"]) < 3 * alike["stderr_within_classes"]
    costly = cost_of_errors(hard_class(costly_errors=0.15))
    planted = 0.15 * 20
    missed = abs(costly["difference_within_classes"] - planted)
    assert missed < 3 * costly["stderr_within_classes"] < planted / 2
    assert costly["p"] < 1e-6


def test_the_standard_error_is_that_of_welch() -> None:
    trace = hard_class()
    blocks, wrong = trace.executed.sum(1), ~trace.correct
    found = cost_of_errors(trace)
    expected = ttest_ind(blocks[wrong], blocks[~wrong], equal_var=False).statistic
    assert found["difference"] / found["stderr"] == pytest.approx(expected)


@given(traces())
@settings(deadline=None)
def test_the_difference_within_classes_is_that_of_a_linear_model(trace: ExecutionTrace) -> None:
    """Against least squares with a column a class, and HC2 written out."""
    labels, blocks = trace.images["label"].to_numpy(), trace.executed.sum(1).astype(float)
    columns = (labels[:, None] == np.unique(labels)).astype(float)
    model = np.column_stack([~trace.correct, columns])
    found = cost_of_errors(trace)
    if np.linalg.matrix_rank(model) < model.shape[1]:  # no class has right answers and wrong ones
        assert found["difference_within_classes"] is None
        return
    inverse = np.linalg.inv(model.T @ model)
    told = inverse @ model.T @ blocks
    assert found["difference_within_classes"] == pytest.approx(told[0], abs=1e-9)
    room = 1 - np.einsum("ij,jk,ik->i", model, inverse, model)
    counts = inverse[0] @ model.T
    if (room[np.abs(counts) > 1e-9] < 1e-9).any():
        assert found["stderr_within_classes"] is None
        return
    of_each = np.divide(
        counts**2 * (blocks - model @ told) ** 2, room, where=room > 1e-9, out=0 * room
    )
    assert found["stderr_within_classes"] == pytest.approx(of_each.sum() ** 0.5, abs=1e-9)


def test_what_hangs_on_one_image_has_no_error() -> None:
    wrong = np.zeros(40, int)
    wrong[7] = 1
    executed = np.random.default_rng(0).random((40, 9)) < 0.5
    found = cost_of_errors(make_trace(executed, np.arange(40) % 2, wrong, 2))
    assert found["difference"] is not None
    assert found["stderr"] is found["stderr_within_classes"] is None
    apart = cost_of_errors(make_trace(executed, np.arange(40) % 2, np.arange(40) % 2, 2))
    assert apart["difference_within_classes"] is None


@given(traces())
@settings(deadline=None)
def test_every_image_is_counted_once(trace: ExecutionTrace) -> None:
    table = cost_table(trace)
    classes = table[table["images"].str.startswith("class: ")]
    assert classes["count"].sum() == table["count"][0] == len(trace.images)
    weighted = (classes["count"] * classes["blocks_mean"]).sum() / len(trace.images)
    assert weighted == pytest.approx(table["blocks_mean"][0])
    by_confidence = cost_by_confidence(trace)
    assert by_confidence["images"].sum() == len(trace.images)
    found = cost_of_errors(trace)
    assert (found["difference"] is None) == (trace.correct.all() or not trace.correct.any())


def test_answers_of_one_confidence_are_not_parted() -> None:
    trace = hard_class()
    confidence = np.random.default_rng(0).permutation(np.linspace(0.5, 1.5, 2000).clip(max=1))
    table = cost_by_confidence(replace(trace, images=trace.images.assign(confidence=confidence)))
    assert table["images"].tolist() == [200] * 5 + [2000 - 1000]
    assert (table["low"].iloc[-1], table["high"].iloc[-1]) == (1, 1)
    assert table["high"].iloc[-2] < 1


def test_costs_fall_with_confidence_where_they_do() -> None:
    trace = hard_class()
    confidence = 1 - trace.executed.mean(1) / 2
    images = trace.images.assign(confidence=confidence)
    sure = replace(trace, images=images)
    blocks = cost_by_confidence(sure)["blocks"]
    assert blocks.is_monotonic_decreasing
    assert cost_of_errors(sure)["spearman_confidence"] == pytest.approx(-1)


def test_one_image_has_costs() -> None:
    trace = make_trace(np.ones((1, 3), dtype=bool), np.array([1]), np.array([0]), 2)
    assert pd.isna(cost_table(trace)["blocks_mean"]).tolist() == [False, False, True, False]
    assert len(cost_by_confidence(trace)) == 1
    assert cost_of_errors(trace)["p"] is None
