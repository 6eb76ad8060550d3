"""What a trace says in figures, and its most extreme images."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.findings import findings, tell_groups
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace
from tests.analysis.made import planted, traced
from tests.analysis.test_rates import make_trace, traces


def test_findings_of_planted_groups_are_plain_json() -> None:
    rates, groups = planted()
    trace = traced(rates, images=40, seed=0)
    named = {
        kind: [f"class {number}" for number in np.flatnonzero(np.array(groups) == number_of)]
        for number_of, kind in enumerate(("a", "b"))
    }
    found = json.loads(json.dumps(findings(trace, named), allow_nan=False))
    assert found["found_groups"]["members"] == [named["a"], named["b"]]
    assert found["found_groups"]["p"] == 1 / 200
    assert (found["given_groups"]["p"], found["given_groups"]["labelings"]) == (1 / 210, 210)
    assert found["given_groups"]["ratio"] > 2
    assert found["images"] == 400


def test_too_few_classes_are_said_to_be() -> None:
    trace = traced(np.full((2, 3), 0.5), images=4, seed=0)
    found = findings(trace, {"a": ["class 0"], "b": ["class 1"]})
    assert "expected three or more" in found["found_groups"]["reason"]
    assert "expected two groups or more" in found["given_groups"]["reason"]
    with pytest.raises(UserError, match="expected three or more"):
        findings(trace, clusters=2)


def test_groups_without_a_difference_within_have_no_ratio() -> None:
    executed = np.repeat([[True, False], [False, True]], 8, axis=0)
    trace = make_trace(executed, np.repeat([0, 1, 2, 3], 4), np.zeros(16, int), 4)
    found = findings(trace, {"a": ["class 0", "class 1"], "b": ["class 2", "class 3"]})
    assert found["given_groups"]["ratio"] is None
    assert found["given_groups"]["between"] == 1
    told = tell_groups(found["given_groups"])
    assert told.startswith("1.00 apart, where 1 is the most, and alike within (p ")
    alike = make_trace(
        executed[:1].repeat(16, axis=0), np.repeat([0, 1, 2, 3], 4), np.zeros(16, int), 4
    )
    found = findings(alike, {"a": ["class 0", "class 1"], "b": ["class 2", "class 3"]})
    assert tell_groups(found["given_groups"]) == "not apart: all their classes execute the same"


@given(traces(), st.integers(1, 4))
@settings(deadline=None)
def test_extremes_are_extreme(trace: ExecutionTrace, per_class: int) -> None:
    chosen = extreme_images(trace, per_class)
    assert not chosen["index"].duplicated().any()
    labels, blocks = trace.images["label"].to_numpy(), trace.executed.sum(1)
    for label in np.unique(labels):
        own = np.sort(blocks[labels == label])
        rows = chosen[chosen["class"] == f"class {label}"]
        fewest, most = (rows[rows["kind"] == kind]["blocks"] for kind in ("fewest", "most"))
        assert len(rows) == min(2 * per_class, len(own))
        assert fewest.tolist() == own[: len(fewest)].tolist()
        assert most.tolist() == own[::-1][: len(most)].tolist()


def test_of_as_many_blocks_the_more_inclined_is_the_harder() -> None:
    trace = make_trace(np.ones((3, 2), dtype=bool), np.zeros(3, int), np.zeros(3, int), 1)
    trace.probability[:] = [[0.9, 0.6], [0.9, 0.9], [0.6, 0.6]]
    chosen = extreme_images(trace, 1)
    assert chosen["file"].tolist() == ["2", "1"]
