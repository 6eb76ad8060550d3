"""Budgets against sums worked out the long way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigtool.budget import Budget
from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops

BLOCKS = (
    BlockFlops("a", 2.0, gated=True, skippable=1.5, gate=0.01),
    BlockFlops("b", 1.0),
    BlockFlops("c", 3.0, gated=True, skippable=3.0, gate=0.03),
)
FLOPS = NetworkFlops(gflops_dense=10.0, params=1, blocks=BLOCKS)
RATES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(np.array)


def test_by_hand() -> None:
    """10 GFLOPs, of which gates save up to 1.5 and 3 and cost 0.04."""
    budget = Budget(0.8, "flops")
    assert budget.least(FLOPS) == pytest.approx((10 + 0.04 - 4.5) / 10)
    assert budget.spent(np.array([1.0, 0.0]), FLOPS) == pytest.approx((10 + 0.04 - 3) / 10)
    assert budget.weights(FLOPS).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert budget.mean_rate(FLOPS) == pytest.approx((8 - 5.54) / 4.5)
    assert Budget(0.8).spent(np.array([1.0, 0.4]), FLOPS) == pytest.approx(0.7)


@given(st.integers(0, 2**20 - 1))
def test_flops_spent_are_what_the_decisions_cost(bits: int) -> None:
    executed = np.array([[bits >> (2 * n) & 1, bits >> (2 * n + 1) & 1] for n in range(10)], bool)
    expected = FLOPS.executed(executed, "argmax").mean() / FLOPS.gflops_dense
    assert Budget(0.9, "flops").spent(executed.mean(axis=0), FLOPS) == pytest.approx(expected)


@given(RATES, st.sampled_from(["rate", "flops"]))
def test_the_mean_rate_spends_just_the_budget(rates: np.ndarray, unit: str) -> None:
    spent = Budget(0.9, unit).spent(rates, FLOPS)  # type: ignore[arg-type]
    if 0 < spent < 1:
        weighted = Budget(0.9, unit).weights(FLOPS) @ rates  # type: ignore[arg-type]
        budget = Budget(spent, unit)  # type: ignore[arg-type]
        assert budget.mean_rate(FLOPS) == pytest.approx(weighted, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 60, float("nan")])
def test_shares_out_of_range_are_told(share: float) -> None:
    with pytest.raises(UserError, match=r"target flops .*: expected a number above 0 and below 1"):
        Budget(share, "flops")


def test_budgets_out_of_reach_are_told() -> None:
    Budget(0.56, "flops").check(FLOPS)
    Budget(0.01, "rate").check(FLOPS)
    with pytest.raises(UserError, match=r"2 of 3 blocks gated the lowest .* is 0\.554"):
        Budget(0.55, "flops").check(FLOPS)
    with pytest.raises(UserError, match="has no gates"):
        Budget(0.5).check(replace(FLOPS, blocks=BLOCKS[1:2]))
    with pytest.raises(UserError, match="expected one of rate, flops"):
        Budget(0.5, "watts")  # type: ignore[arg-type]
