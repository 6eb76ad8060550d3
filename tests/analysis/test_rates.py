from dataclasses import replace

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aigtool.analysis.rates import (
    blocks_executed,
    class_rates,
    class_table,
    gate_rates,
    undecided_gates,
)
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.trace import ExecutionTrace


def make_trace(
    executed: np.ndarray, labels: np.ndarray, ranks: np.ndarray, classes: int
) -> ExecutionTrace:
    count, gates = executed.shape
    names = [f"layer{number}" for number in range(gates)]
    images = pd.DataFrame(
        {
            "index": np.arange(count),
            "file": [str(number) for number in range(count)],
            "label": labels,
            "prediction": labels,
            "label_rank": ranks,
            "confidence": 0.5,
            "loss": 0.5,
        }
    )
    return ExecutionTrace(
        images=images,
        executed=executed,
        probability=executed.astype(np.float32),
        flops=NetworkFlops(1.0, 1, tuple(BlockFlops(n, 0.1, True, 0.1, 0.0, 1) for n in names)),
        policy="argmax",
        targets=(None,) * gates,
        classes=tuple(f"class {number}" for number in range(classes)),
        source="made",
        seconds=1.0,
    )


@st.composite
def traces(draw: st.DrawFn) -> ExecutionTrace:
    count, gates = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    return make_trace(
        draw(arrays(bool, (count, gates))),
        draw(arrays(np.int64, count, elements=st.integers(0, 4))),
        draw(arrays(np.int64, count, elements=st.integers(0, 2))),
        5,
    )


@given(traces())
@settings(deadline=None)
def test_rates_count_what_was_executed(trace: ExecutionTrace) -> None:
    rates = gate_rates(trace)
    assert rates["executed"].tolist() == trace.executed.sum(0).tolist()
    labels = trace.images["label"].to_numpy()
    by_class = class_rates(trace)
    for label in range(5):
        name, members = f"class {label}", labels == label
        assert (name in by_class.index) == members.any()
        if members.any():
            np.testing.assert_allclose(by_class.loc[name], trace.executed[members].mean(0))
    # The classes' rates, weighted by their images, are the gates' rates.
    weights = np.array([(labels == label).sum() for label in range(5) if label in labels])
    np.testing.assert_allclose(
        weights @ by_class.to_numpy() / len(labels), rates["rate"], atol=1e-12
    )


@given(traces())
@settings(deadline=None)
def test_histogram_counts_every_image_once(trace: ExecutionTrace) -> None:
    counts = blocks_executed(trace)
    assert len(counts) == len(trace.gates) + 1
    assert counts["images"].sum() == len(trace.images)
    assert counts["right"].sum() == trace.correct.sum()
    assert (counts["blocks"] * counts["images"]).sum() == trace.executed.sum()


@given(traces())
@settings(deadline=None)
def test_the_long_table_has_the_same_rates_and_says_how_sure_they_are(
    trace: ExecutionTrace,
) -> None:
    table = class_table(trace)
    rates = table.pivot_table(index="class", columns="gate", values="rate", sort=False)
    np.testing.assert_allclose(rates, class_rates(trace))
    assert (table["low"] <= table["rate"]).all()
    assert (table["rate"] <= table["high"]).all()
    per_gate = table.groupby("gate", sort=False)[["executed", "images"]].sum()
    np.testing.assert_array_equal(per_gate["executed"], trace.executed.sum(0))
    assert {*per_gate["images"]} == {len(trace.images)}


def test_gates_are_of_three_kinds() -> None:
    executed = np.zeros((20, 4), dtype=bool)
    executed[:1, 1] = executed[:10, 2] = executed[:, 3] = True  # 0, 5, 50 and 100 %
    labels = np.repeat([0, 1], 10)
    rates = gate_rates(make_trace(executed, labels, np.zeros(20, int), 2))
    assert rates["kind"].tolist() == ["always off", "always off", "adaptive", "always on"]
    assert rates["class_max"].tolist() == [0, 0.1, 1, 1]
    assert rates["class_stdev"].tolist() == [0, 0.05, 0.5, 0]


def test_gates_that_rounding_decides_are_told() -> None:
    executed = np.tile([[True, True, False], [False, True, False]], (10, 1))
    trace = make_trace(executed, np.zeros(20, int), np.zeros(20, int), 1)
    assert undecided_gates(trace) == []  # what probabilities tell apart is decided
    trace.probability[:] = 0.5
    trace.probability[0, 0] += 1e-6
    assert undecided_gates(trace) == ["layer0"]
    assert undecided_gates(replace(trace, policy="sampled")) == []
