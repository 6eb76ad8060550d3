import dataclasses

import pytest

from aigtool.budget import Budget
from aigtool.trace import ExecutionTrace
from aigtool.training.config import FinetuneConfig
from aigtool.training.sweep import Point, point_rows, target_rows


def with_ranks(trace: ExecutionTrace, ranks: list[int]) -> ExecutionTrace:
    return dataclasses.replace(trace, images=trace.images.assign(label_rank=ranks))


def test_a_point_sets_the_budget_and_the_seed_and_nothing_else() -> None:
    recipe = FinetuneConfig(lr=0.5, target_rate=0.3)
    flops = Point(Budget(0.7, "flops"), 4).config(recipe)
    assert (flops.target_flops, flops.target_rate, flops.seed, flops.lr) == (0.7, None, 4, 0.5)
    assert Point(Budget(0.7), 4).config(recipe).target_rate == 0.7


def test_targets_are_means_over_seeds_and_differences_are_to_dense(
    small_trace: ExecutionTrace,
) -> None:
    dense = with_ranks(small_trace, [0, 0, 0, 1])
    points = {
        Point(Budget(0.6, "flops"), 0): with_ranks(small_trace, [0, 0, 1, 1]),
        Point(Budget(0.6, "flops"), 1): with_ranks(small_trace, [0, 1, 1, 1]),
        Point(Budget(0.8, "flops"), 0): dense,
    }
    rows = target_rows(points, dense)
    assert rows["target"].tolist() == [0.6, 0.8]
    assert rows["runs"].tolist() == [2, 1]
    assert rows["top1"].tolist() == [37.5, 75.0]
    assert rows["top1_stdev"][0] == pytest.approx((50 - 25) / 2**0.5)
    assert rows["difference"].tolist() == [-37.5, 0.0]
    small = points[Point(Budget(0.6, "flops"), 0)]
    runs = point_rows(points, {"dense": dense, "small": small}, "dense")
    assert runs["network"].tolist() == ["dense", "small", "gated", "gated", "gated"]
    assert runs["seed"].tolist()[2:] == [0, 1, 0]
    assert runs["difference"].isna().tolist() == [True, False, False, False, False]
    assert runs["difference"].tolist()[1:] == [-25.0, -25.0, -50.0, 0.0]
