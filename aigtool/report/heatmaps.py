"""Execution rates as the page's sortable tables take them."""

from itertools import pairwise
from typing import Any

import numpy as np

from aigtool.analysis.clustering import class_order, class_tree
from aigtool.analysis.rates import stage_of
from aigtool.analysis.training_plots import gates_over_epochs
from aigtool.output import records
from aigtool.report.gates import GateTables
from aigtool.report.sources import Run


def class_heatmap(tables: GateTables) -> dict[str, Any]:
    """Return how often each class executes each gate, counted.

    Returns:
        ``rows`` and ``columns`` (names), ``kind`` (what a row and a column are), ``executed``
        (counts, a row each), ``images`` (of each row), ``order`` (rows, those next to each other
        alike), ``edges`` (columns that begin a stage) and ``about`` (what is special of a column).

    Example:
        >>> from aigtool.report.gates import analyse
        >>> heatmap = class_heatmap(analyse(trace))
        >>> heatmap["rows"], heatmap["executed"], heatmap["images"]
        (['cat', 'dog'], [[2, 0], [2, 1]], [2, 2])
    """
    gates = tables.gates["gate"].tolist()
    table = tables.classes
    executed = table["executed"].to_numpy().reshape(-1, len(gates))
    images = table["images"].to_numpy().reshape(-1, len(gates))[:, 0]
    return {
        "rows": table["class"].tolist()[:: len(gates)],
        "columns": gates,
        "kind": ["class", "gate"],
        "executed": executed.tolist(),
        "images": images.tolist(),
        "order": class_order(class_tree(executed / images[:, None])).tolist(),
        "edges": _edges(gates),
        "about": [_about(row) for row in records(tables.gates)],
    }


def training_heatmap(run: Run) -> dict[str, Any]:
    """Return each gate's execution rate over the epochs of a run, on validation images."""
    rates = gates_over_epochs(run.metrics)
    return {
        "rows": rates.index.tolist(),
        "columns": [str(epoch) for epoch in rates.columns],
        "kind": ["gate", "epoch"],
        "rates": np.round(rates.to_numpy(), 4).tolist(),
        "order": [*range(len(rates))],
        "edges": [],
        "about": [""] * rates.shape[1],
    }


def _edges(gates: list[str]) -> list[int]:
    pairs = enumerate(pairwise(gates), start=1)
    return [at for at, (before, after) in pairs if stage_of(before) != stage_of(after)]


def _about(gate: dict[str, Any]) -> str:
    marks = [gate["kind"]]
    marks += ["downsamples"] * bool(gate["downsamples"])
    marks += ["last of its stage"] * bool(gate["last"])
    return ", ".join(marks)
