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


_FILES = {
    "classes": ("class_rates.csv", "class gate", "executed images", ""),
    "gates": ("gate_rates.csv", "gate kind", "executed images", "rate class_min class_max"),
    "blocks": ("blocks_executed.csv", "", "blocks right wrong images", ""),
    "confidence": ("costs_by_confidence.csv", "", "images", "low high top1 blocks blocks_stderr"),
    "extremes": (
        *("extreme_images.csv", "class kind file prediction skipped"),
        *("blocks", "confidence gflops"),
    ),
}
"""Each table's file and its columns of text, of counts and of numbers."""
_FOUND = (
    *("data", "images", "policy", "correct", "top1", "gates", "undecided_gates", "errors"),
    *("found_groups", "gflops_executed", "flops_fraction", "execution_rate"),
    *("adaptive_gates", "always_on_gates", "always_off_gates"),
)
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
    if missing := [name for name in _FOUND if name not in found]:
        raise ValueError(f"no {missing[0]}")
    tables = {name: _read(folder / file, *columns) for name, (file, *columns) in _FILES.items()}
    if len(tables["classes"]) % len(tables["gates"]):
        raise ValueError(f"{_FILES['classes'][0]} is cut short")
    return GateTables(found, **tables)


def _read(file: Path, texts: str, counts: str, numbers: str) -> pd.DataFrame:
    """Read a table in which names such as ``nan`` or ``0`` stay names."""
    types = {
        name: kind
        for names, kind in ((texts, str), (counts, int), (numbers, float))
        for name in names.split()
    }
    return pd.read_csv(file, dtype=dict.fromkeys(texts.split(), str), keep_default_na=False).astype(
        types
    )
