"""Several networks, or one under several conditions, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from aigtool.analysis.rates import gate_rates
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
    """Return a row a trace and gate: how often it executes its block.

    Columns ``trace``, ``gate``, counts ``executed`` and ``images``, and ``rate`` with its 95 %
    Wilson interval ``low`` to ``high``. Traces without gates have no row.

    Raises:
        UserError: Two have other gates than each other.

    Example:
        >>> compare_gates({"a": trace, "b": trace})[["trace", "gate", "executed", "rate"]]
          trace   gate  executed  rate
        0     a  first         4  1.00
        1     a   last         1  0.25
        2     b  first         4  1.00
        3     b   last         1  0.25
    """
    check_same_gates({name: trace.gates for name, trace in traces.items()})
    columns = ["trace", "gate", "executed", "images", "rate", "low", "high"]
    rows = [gate_rates(trace).assign(trace=name) for name, trace in traces.items() if trace.gates]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def check_same_gates(gates: Mapping[str, Sequence[str]]) -> None:
    """Refuse networks with gates at different blocks; those without any may stand beside.

    Args:
        gates: By name of the network, the names of its gates.

    Raises:
        UserError: Two have other gates than each other.

    Example:
        >>> check_same_gates({"a": ["first", "last"], "b": ["first"], "c": []})
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: b has other gates than a (1 and 2; last in one alone): expected \
networks, or traces of them, with gates at the same blocks
    """
    gated = [(name, [*listed]) for name, listed in gates.items() if listed]
    for other, listed in gated[1:]:
        name, first = gated[0]
        if listed != first:
            differing = next((n for n in (*first, *listed) if (n in first) != (n in listed)), "")
            which = f"; {differing} in one alone" if differing else ", in another order"
            raise UserError(
                f"{other} has other gates than {name} ({len(listed)} and {len(first)}{which}): "
                "expected networks, or traces of them, with gates at the same blocks"
            )
