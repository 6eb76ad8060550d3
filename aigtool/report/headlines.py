"""What a reader wants to know first: gated beside dense, each number with what it rests on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from aigtool.analysis.comparison import difference_to
from aigtool.errors import UserError
from aigtool.output import records
from aigtool.report.gates import GateTables
from aigtool.report.sources import Results
from aigtool.report.words import (
    UNKNOWN,
    counted,
    interval,
    is_known,
    number,
    percent,
    share,
    stderr,
)
from aigtool.trace import ExecutionTrace

GATED = "gated"
EPSILON = 8 / 255
"""Robustness is told at this epsilon where it was measured, else at the largest."""


@dataclass(frozen=True)
class Side:
    """A network's number.

    Attributes:
        network: Which.
        value: The number.
        detail: What it rests on.
    """

    network: str
    value: str = UNKNOWN
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """One question, answered for the gated network and the one before gating.

    Attributes:
        title: What is measured.
        sides: Gated first.
        about: On what, and how the two compare.
    """

    title: str
    sides: tuple[Side, Side]
    about: str


@dataclass(frozen=True)
class Measured:
    """A network's figures over a data set.

    Attributes:
        name: Of the trace or analysis.
        data: The data set and split.
        figures: What ``ExecutionTrace.summary`` returns, and ``difference_to`` the network before
            gating where both were traced over the same images.
    """

    name: str
    data: str
    figures: Mapping[str, Any]

    @property
    def decides(self) -> bool:
        """Whether gates decide image by image."""
        return bool(self.figures["gates"]) and self.figures["policy"] in ("argmax", "sampled")

    @property
    def is_reference(self) -> bool:
        """Whether it stands for the network before gating."""
        return not self.figures["gates"] or self.figures["policy"] == "open"

    def is_over(self, other: "Measured") -> bool:
        """Whether it is over as many images of the same data."""
        same = self.figures["images"] == other.figures["images"]
        return same and self.data == other.data


def measured_networks(
    traces: Mapping[str, ExecutionTrace], analyses: Mapping[str, GateTables]
) -> list[Measured]:
    """Return the networks that were measured, each once.

    Example:
        >>> [network] = measured_networks({"test": trace}, {})
        >>> network.decides, network.figures["top1"]
        (True, 75.0)
    """
    found = [
        Measured(name, trace.source, trace.summary() | _beside(trace, traces))
        for name, trace in traces.items()
    ]
    return found + [
        Measured(name, tables.found["data"], tables.found)
        for name, tables in analyses.items()
        if not any(tables.is_of(trace) for trace in traces.values() if trace.gates)
    ]


def _beside(trace: ExecutionTrace, traces: Mapping[str, ExecutionTrace]) -> dict[str, float]:
    """Return by how much top-1 is above that of the network before gating, paired by image."""
    for other in traces.values():
        if trace.gates and not other.gates:
            try:
                return difference_to(other, [trace])
            except UserError:  # over other images
                continue
    return {}


def headlines(results: Results, networks: Sequence[Measured]) -> list[Headline]:
    """Return accuracy, compute, seconds and robustness."""
    readings = [*_of_networks(networks), *_of_attacks(results), *_of_runs(results)]
    reading = max(readings, key=_Reading.worth, default=_Reading())
    return [_accuracy(reading), _compute(reading), _seconds(results), _robustness(results)]


@dataclass(frozen=True)
class _Reading:
    """Figures of both networks over the same images."""

    gated: Mapping[str, Any] | None = None
    dense: Mapping[str, Any] | None = None
    reference: str = "dense"
    data: str = ""

    def worth(self) -> int:
        """Prefer both networks, then the gated one; of as good ones the first."""
        return 0 if self.gated is None else 1 + (self.dense is not None)


def _of_networks(networks: Sequence[Measured]) -> Iterator[_Reading]:
    for gated in (network for network in networks if network.decides):
        for dense in (n for n in networks if n.is_reference and n.is_over(gated)):
            reference = "open gates" if dense.figures["gates"] else "dense"
            yield _Reading(gated.figures, dense.figures, reference, gated.data)
        yield _Reading(gated.figures, data=gated.data)
    for dense in (network for network in networks if network.is_reference):
        yield _Reading(None, dense.figures, data=dense.data)


def _of_attacks(results: Results) -> Iterator[_Reading]:
    for attack in results.attacks.values():
        chosen = attack.rows[(attack.rows["epsilon"] == 0) & (attack.rows["defense"] == "none")]
        rows = {row["network"]: row for row in records(chosen)}
        gated, others = rows.pop(GATED, None), [*rows.items()]
        if gated and others:
            name, dense = others[0]
            gated |= {"gflops_dense": dense["gflops_executed"]}
            yield _Reading(gated, dense, str(name), attack.data)


def _of_runs(results: Results) -> Iterator[_Reading]:
    for name, run in results.runs.items():
        if run.has_gates and run.metrics["best"].any():
            [best] = records(run.metrics[run.metrics["best"]].tail(1))
            figures = {key.removeprefix("val_"): value for key, value in best.items()}
            about = f"{name}, epoch {best['epoch']}, validation images"
            yield _Reading(figures, data=about)


def _accuracy(reading: _Reading) -> Headline:
    sides = _right(GATED, reading.gated), _right(reading.reference, reading.dense)
    gated, paired = reading.gated or {}, ""
    if reading.dense and "difference" in gated:
        points, error = gated["difference"], gated["difference_stderr"]
        paired = f"{points:+.1f} ± {error:.1f} points, paired image by image"
    return Headline("Accuracy, top-1", sides, _joined(paired, reading.data))


def _compute(reading: _Reading) -> Headline:
    gated, dense = reading.gated or {}, reading.dense or {}
    fraction, rate = gated.get("flops_fraction"), gated.get("execution_rate")
    whole = dense.get("gflops_executed", gated.get("gflops_dense"))
    if "gflops_executed" in gated and fraction is None and whole:
        fraction = gated["gflops_executed"] / whole
    details = [f"{share(fraction)} of dense"] if is_known(fraction) else []
    details += [f"{share(rate)} of gated blocks executed"] if is_known(rate) else []
    sides = (
        Side(GATED, number(gated.get("gflops_executed")), "; ".join(details)),
        Side(reading.reference if dense else "dense", number(whole), "all blocks" * bool(whole)),
    )
    return Headline("GFLOPs an image", sides, _joined("multiply-accumulates", reading.data))


def _seconds(results: Results) -> Headline:
    title = "Milliseconds an image"
    for name, rows in results.benches.items():
        served = rows[rows["engine"] == "skip"]
        chosen = (served if len(served) else rows).sort_values("batch_size", kind="stable")
        row = records(chosen.head(1))[0]
        size = row["batch_size"]
        sides = tuple(
            Side(kind, number(row[f"{key}_ms"] / size), f"of a batch of {size}")
            for kind, key in ((GATED, "gated"), ("dense", "dense"))
        )
        about = f"{row['speedup']:.2f} times as fast; engine {row['engine']}, {row['device']}, "
        about += f"threads: {row['threads']}; in turns; settings measured in {name}: {len(rows)}"
        return Headline(title, (sides[0], sides[1]), about)
    return Headline(title, (Side(GATED), Side("dense")), "aigtool bench measures seconds")


def _robustness(results: Results) -> Headline:
    for attack in results.attacks.values():
        rows = attack.rows[attack.rows["defense"] == "none"]
        epsilon = EPSILON if _near(rows, EPSILON).any() else rows["epsilon"].max()
        chosen = {row["network"]: row for row in records(rows[_near(rows, epsilon)])}
        other = next((name for name in chosen if name != GATED), "dense")
        title = f"Accuracy under FGSM, {255 * epsilon:g}/255"
        sides = tuple(_right(str(name), chosen.get(name)) for name in (GATED, other))
        behind = attack.rows[attack.rows["defense"] != "none"]
        defended = behind[_near(behind, epsilon)]
        return Headline(title, (sides[0], sides[1]), _joined(_behind(defended), attack.data))
    return Headline("Accuracy under FGSM", (Side(GATED), Side("dense")), "aigtool attack does that")


def _near(rows: pd.DataFrame, epsilon: float) -> "pd.Series[bool]":
    return (rows["epsilon"] - epsilon).abs() < 1e-9


def _right(name: str, figures: Mapping[str, Any] | None) -> Side:
    """Tell the share of right answers, with its standard error and interval."""
    if figures is None or not is_known(figures.get("correct")):
        return Side(name)
    correct, images = figures["correct"], figures["images"]
    detail = f"± {stderr(correct, images):.1f}; {counted(correct, images)} right; 95 % interval "
    return Side(name, percent(figures["top1"]), detail + interval(correct, images))


def _behind(rows: pd.DataFrame) -> str:
    told = [f"{row['network']} {percent(row['top1'])}" for row in records(rows)]
    return f"behind JPEG: {', '.join(told)}" if told else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
