"""The tables of what gates do: worked out from a trace, or as an analysis left them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aigtool.analysis.costs import cost_by_confidence
from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.findings import findings, tell_errors, tell_groups
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
    "classes": ("class_rates.csv", "class gate", "", "executed images", ""),
    "gates": (
        *("gate_rates.csv", "gate kind", "downsamples last", "executed images"),
        "rate class_min class_max",
    ),
    "blocks": ("blocks_executed.csv", "", "", "blocks right wrong images", ""),
    "confidence": (
        *("costs_by_confidence.csv", "", "", "images"),
        "low high top1 blocks blocks_stderr",
    ),
    "extremes": (
        *("extreme_images.csv", "class kind file prediction skipped", "right", "blocks"),
        "confidence gflops",
    ),
}
"""Each table's file and its columns of text, of yes or no, of counts and of numbers."""
_FIGURES = (
    *("images", "correct", "top1", "top1_stderr", "gflops_dense", "gflops_executed"),
    *("flops_fraction", "execution_rate", "adaptive_gates", "always_on_gates", "always_off_gates"),
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
    found = _read_found(folder / "analysis.json")
    tables = {name: _read(folder / file, *columns) for name, (file, *columns) in _FILES.items()}
    _check_agreement(found, **tables)
    return GateTables(found, **tables)


def _read_found(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    kinds: dict[str, Any] = {
        **dict.fromkeys(_FIGURES, int | float),
        **dict.fromkeys(("data", "policy"), str),
        **dict.fromkeys(("gates", "undecided_gates"), list),
    }
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
        raise ValueError(f"{file.name} does not tell {wrong[0]}")
    try:  # To tell them is to ask for all that they need.
        tell_errors(found["errors"])
        for groups in ("found_groups", *({"given_groups"} & found.keys())):
            tell_groups(found[groups])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file.name} does not tell all of its findings: {error}") from error
    return found


def _check_agreement(
    found: Mapping[str, Any], classes: pd.DataFrame, gates: pd.DataFrame, **others: pd.DataFrame
) -> None:
    """Refuse tables of other gates or images than the findings: one of them was cut short."""
    names = [gate["name"] for gate in found["gates"]]
    if not names or gates["gate"].tolist() != names:
        raise ValueError(f"{_FILES['gates'][0]} has other gates than analysis.json")
    if not np.allclose(gates["rate"], [gate["rate"] for gate in found["gates"]]):
        raise ValueError(f"{_FILES['gates'][0]} has other rates than analysis.json")
    if classes["gate"].tolist() != names * (len(classes) // len(names)):
        raise ValueError(f"{_FILES['classes'][0]} has other gates than analysis.json")
    images = {"classes": classes["images"][:: len(names)], "blocks": others["blocks"]["images"]}
    for table, counts in images.items():
        if counts.sum() != found["images"]:
            raise ValueError(f"{_FILES[table][0]} has other images than analysis.json")
    if empty := [_FILES[table][0] for table, rows in others.items() if rows.empty]:
        raise ValueError(f"{empty[0]} has no rows")


def _read(file: Path, texts: str, flags: str, counts: str, numbers: str) -> pd.DataFrame:
    """Read a table in which names such as ``nan`` or ``0`` stay names."""
    read = {**dict.fromkeys(texts.split(), str), **dict.fromkeys(flags.split(), bool)}
    kept = {**dict.fromkeys(counts.split(), int), **dict.fromkeys(numbers.split(), float)}
    try:
        empty = dict.fromkeys(numbers.split(), "")  # of a single image there is no error
        rows = pd.read_csv(file, dtype=read, keep_default_na=False, na_values=empty)
        return rows.astype({**read, **kept})
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file.name}: {error}") from error
