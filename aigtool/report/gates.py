"""The tables of what gates do: worked out from a trace, or as an analysis left them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aigtool.analysis.costs import cost_by_confidence
from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.findings import findings
from aigtool.analysis.rates import blocks_executed, class_table, gate_rates
from aigtool.trace import ExecutionTrace

_TEXT = dict.fromkeys(("class", "gate", "stage", "kind", "file", "prediction", "skipped"), str)


@dataclass(frozen=True)
class GateTables:
    """What an analysis says, in the tables that its functions return.

    Attributes:
        found: ``findings``.
        classes: ``class_table``.
        gates: ``gate_rates``.
        blocks: ``blocks_executed``.
        confidence: ``cost_by_confidence``.
        extremes: ``extreme_images``.
    """

    found: dict[str, Any]
    classes: pd.DataFrame
    gates: pd.DataFrame
    blocks: pd.DataFrame
    confidence: pd.DataFrame
    extremes: pd.DataFrame

    def is_of(self, trace: ExecutionTrace) -> bool:
        """Whether they say what a trace says.

        Example:
            >>> analyse(trace).is_of(trace)
            True
        """
        keys = ["class", "gate", "executed", "images"]
        same = self.classes[keys].reset_index(drop=True)
        return self.found["data"] == trace.source and same.equals(class_table(trace)[keys])


_FILES: dict[str, tuple[str, dict[str, type]]] = {
    "classes": ("class_rates.csv", {"executed": int, "images": int}),
    "gates": ("gate_rates.csv", {"executed": int, "images": int, "rate": float}),
    "blocks": ("blocks_executed.csv", {"blocks": int, "right": int, "wrong": int}),
    "confidence": ("costs_by_confidence.csv", {"blocks": float, "blocks_stderr": float}),
    "extremes": ("extreme_images.csv", {"blocks": int, "confidence": float, "right": bool}),
}
_MADE: dict[str, Callable[[ExecutionTrace], pd.DataFrame]] = {
    "classes": class_table,
    "gates": gate_rates,
    "blocks": blocks_executed,
    "confidence": cost_by_confidence,
    "extremes": extreme_images,
}


def analyse(trace: ExecutionTrace) -> GateTables:
    """Work the tables out from a trace with gates.

    Example:
        >>> analyse(trace).gates["rate"].tolist()
        [1.0, 0.25]
    """
    return GateTables(findings(trace), **{name: make(trace) for name, make in _MADE.items()})


def read_tables(folder: Path) -> GateTables:
    """Read those that ``write_analysis`` wrote.

    Example:
        >>> import tempfile
        >>> from aigtool.analysis.figures import write_analysis
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = write_analysis(trace, folder, formats=[])
        >>> read_tables(folder).is_of(trace)
        True
    """
    found = json.loads((folder / "analysis.json").read_text())
    tables = {name: _read(folder / file, types) for name, (file, types) in _FILES.items()}
    if len(tables["classes"]) % len(tables["gates"]):
        raise ValueError(f"{_FILES['classes'][0]} is cut short")
    return GateTables({"data": found["data"], "errors": found["errors"], **found}, **tables)


def _read(file: Path, types: dict[str, type]) -> pd.DataFrame:
    """Read a table in which names such as ``nan`` or ``0`` stay names."""
    return pd.read_csv(file, dtype=_TEXT, keep_default_na=False).astype(types)
