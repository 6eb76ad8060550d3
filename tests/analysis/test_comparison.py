"""Several traces side by side."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aigtool.analysis.comparison import compare_gates, compare_traces
from aigtool.analysis.figures import write_comparison
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace
from tests.analysis.made import traced


@pytest.fixture
def traces() -> dict[str, ExecutionTrace]:
    """A network, the same with one decision turned, and one without gates."""
    first = traced(np.full((3, 4), 0.5), images=10, seed=0)
    executed = first.executed.copy()
    executed[0, 0] = ~executed[0, 0]
    wrong = first.images.assign(label_rank=np.arange(30) % 10 == 0)
    dense = replace(
        first,
        executed=executed[:, :0],
        probability=first.probability[:, :0],
        flops=replace(first.flops, blocks=()),
        targets=(),
    )
    return {"first": first, "turned": replace(first, executed=executed, images=wrong), "d": dense}


def test_others_are_compared_with_the_first(traces: dict[str, ExecutionTrace]) -> None:
    rows = compare_traces(traces).set_index("trace")
    assert rows.loc["turned", "gate_agreement"] == 1 - 1 / 120
    assert rows.loc["turned", "difference"] == pytest.approx(-10)
    assert rows["gate_agreement"].isna().tolist() == [True, False, True]
    assert rows["adaptive_gates"].tolist() == [4, 4, 0]
    gates = compare_gates(traces)
    assert gates["trace"].tolist() == ["first"] * 4 + ["turned"] * 4
    assert gates["executed"].tolist()[::4] == [
        int(trace.executed[:, 0].sum()) for trace in (traces["first"], traces["turned"])
    ]
    assert (gates["low"] < gates["rate"]).all()
    assert (gates["rate"] < gates["high"]).all()


def test_over_other_images_nothing_is_paired(traces: dict[str, ExecutionTrace]) -> None:
    fewer = traced(np.full((3, 4), 0.5), images=5, seed=0)
    rows = compare_traces({"first": traces["first"], "fewer": fewer})
    assert rows["difference"].isna().all()
    assert rows["images"].tolist() == [30, 15]


def test_other_gates_are_told(traces: dict[str, ExecutionTrace]) -> None:
    other = traced(np.full((3, 5), 0.5), images=10, seed=0)
    with pytest.raises(UserError, match=r"b has other gates than first \(5 and 4; .* in one"):
        compare_gates({"first": traces["first"], "b": other})


@pytest.mark.parametrize("names", [["first", "turned", "d"], ["d", "d2"]])
def test_a_comparison_is_drawn(
    traces: dict[str, ExecutionTrace], names: list[str], tmp_path: Path
) -> None:
    chosen = {name: traces[name.removesuffix("2")] for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, _ = write_comparison(chosen, tmp_path)
    assert [path.name for path in paths] == [
        *("comparison.csv", "comparison.png", "comparison.svg", "gates_compared.csv"),
    ]
    assert pd.read_csv(tmp_path / "comparison.csv")["trace"].tolist() == names
