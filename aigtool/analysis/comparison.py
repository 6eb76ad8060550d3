"""Several networks, or one under several conditions, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace, accuracy_difference

FIGURES = (
    *("correct", "images", "top1", "top1_stderr", "execution_rate", "gflops_dense"),
    *("gflops_executed", "flops_fraction", "flops_fraction_stdev"),
    *("adaptive_gates", "always_on_gates", "always_off_gates"),
)
DIFFERENCE = ("difference", "difference_stderr")


def figures_of(trace: ExecutionTrace) -> dict[str, Any]:
    """Return what of a trace's summary is set beside that of others.

    Example:
        >>> list(figures_of(trace))[:3]
        ['correct', 'images', 'top1']
    """
    summary = trace.summary()
    return {name: summary[name] for name in FIGURES}


def difference_to(first: ExecutionTrace, traces: Sequence[ExecutionTrace]) -> dict[str, float]:
    """Return ``accuracy_difference`` by the names of its columns.

    Example:
        >>> difference_to(trace, [trace])
        {'difference': 0.0, 'difference_stderr': 0.0}
    """
    return dict(zip(DIFFERENCE, accuracy_difference(traces, first), strict=True))


def compare_traces(traces: Mapping[str, ExecutionTrace]) -> pd.DataFrame:
    """Return a row a trace, the first of which the others are compared with.

    Args:
        traces: By name.

    Returns:
        Columns ``trace``, the figures of ``ExecutionTrace.summary``, and, over the same images,
        ``difference`` to the first in points of top-1, paired by image, with
        ``difference_stderr``; and, of the same gates as well, ``gate_agreement``: the share of
        decisions that are the same.

    Example:
        >>> rows = compare_traces({"a": trace, "b": trace})
        >>> rows[["trace", "correct", "difference", "gate_agreement"]]
          trace  correct  difference  gate_agreement
        0     a        3         NaN             NaN
        1     b        3         0.0             1.0
    """
    (_, first), *_ = traces.items()
    rows: list[dict[str, Any]] = []
    for name, trace in traces.items():
        row = {"trace": name, **figures_of(trace)}
        if rows:
            row |= _beside(trace, first)
        rows.append(row)
    columns = ["trace", *FIGURES, *DIFFERENCE, "gate_agreement"]
    return pd.DataFrame(rows, columns=columns)


def _beside(trace: ExecutionTrace, first: ExecutionTrace) -> dict[str, float]:
    try:
        found = difference_to(first, [trace])
    except UserError:  # over other images, which cannot be paired
        return {}
    if trace.gates and trace.gates == first.gates:
        found["gate_agreement"] = float((trace.executed == first.executed).mean())
    return found


def compare_gates(traces: Mapping[str, ExecutionTrace]) -> pd.DataFrame:
    """Return a row a gate, a column a trace: its execution rate.

    Traces without gates have no column.

    Raises:
        UserError: Two have other gates than each other.

    Example:
        >>> compare_gates({"a": trace, "b": trace})
                 a     b
        gate
        first  1.00  1.00
        last   0.25  0.25
    """
    gated = {name: trace for name, trace in traces.items() if trace.gates}
    if not gated:
        return pd.DataFrame(index=pd.Index([], name="gate"))
    (name, first), *others = gated.items()
    for other, trace in others:
        if trace.gates != first.gates:
            raise UserError(
                f"{other} has other gates than {name} ({len(trace.gates)}, {len(first.gates)}): "
                "expected traces of one network, or of networks with the same blocks"
            )
    rates = {name: np.mean(trace.executed, axis=0) for name, trace in gated.items()}
    return pd.DataFrame(rates, index=pd.Index(first.gates, name="gate"))
