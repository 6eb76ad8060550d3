"""What a reader wants to know first: gated beside dense, each number with what it rests on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import pandas as pd

from aigtool.analysis.comparison import difference_to
from aigtool.output import records
from aigtool.report.gates import GateTables
from aigtool.report.sources import Attack, Results
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
from aigtool.robustness.plots import told_attack, told_epsilon
from aigtool.trace import ExecutionTrace

GATED = "gated"
UNAWARE = "static"
"""Attackers of a defended network that do not know of the defence."""


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
        figures: What ``ExecutionTrace.summary`` returns.
        trace: That they are of, where it is at hand.
    """

    name: str
    data: str
    figures: Mapping[str, Any]
    trace: ExecutionTrace | None = None

    @property
    def decides(self) -> bool:
        """Whether gates decide image by image."""
        return bool(self.figures["gates"]) and self.figures["policy"] in ("argmax", "sampled")

    @property
    def is_reference(self) -> bool:
        """Whether it stands for the network before gating."""
        return not self.figures["gates"] or self.figures["policy"] == "open"

    @property
    def kind(self) -> str:
        """What a headline calls it."""
        return GATED if self.decides else "open gates" if self.figures["gates"] else "dense"

    def is_before(self, gated: "Measured") -> bool:
        """Whether it stands for what another was before gating, over the same images."""
        spent, whole = self.figures["gflops_executed"], gated.figures["gflops_dense"]
        same_size = self is not gated and self.is_reference and isclose(spent, whole)
        return same_size and self._is_over(gated)

    def _is_over(self, other: "Measured") -> bool:
        same = self.figures["images"] == other.figures["images"] and self.data == other.data
        if self.trace is None or other.trace is None:
            return same
        keys = ["file", "label"]
        return same and self.trace.images[keys].equals(other.trace.images[keys])

    def beside(self, reference: "Measured") -> dict[str, Any]:
        """Return by how much top-1 is above a reference's, paired by image where both are traced.

        Returns:
            What ``difference_to`` does, and the reference's name as ``difference_to``.
        """
        if self.trace is None or reference.trace is None:
            return {}
        difference = difference_to(reference.trace, [self.trace])
        return {**difference, "difference_to": reference.name}


def measured_networks(
    traces: Mapping[str, ExecutionTrace], analyses: Mapping[str, GateTables]
) -> list[Measured]:
    """Return the networks that were measured, each once.

    Example:
        >>> [network] = measured_networks({"test": trace}, {})
        >>> network.decides, network.figures["top1"]
        (True, 75.0)
    """
    found = [Measured(name, trace.source, trace.summary(), trace) for name, trace in traces.items()]
    return found + [
        Measured(name, tables.found["data"], tables.found)
        for name, tables in analyses.items()
        if not any(tables.is_of(trace) for trace in traces.values() if trace.gates)
    ]


def before_gating(gated: Measured, networks: Sequence[Measured]) -> Measured | None:
    """Return what stands for a network before gating: one without gates rather than open ones."""
    found = [network for network in networks if network.is_before(gated)]
    return min(found, key=lambda network: bool(network.figures["gates"]), default=None)


def headlines(results: Results, networks: Sequence[Measured]) -> list[Headline]:
    """Return accuracy, compute, seconds and robustness."""
    kinds = (_of_networks(networks), _of_attacks(results), _of_runs(results))
    most = [max(kind, key=lambda one: (one.worth, one.images), default=None) for kind in kinds]
    reading = max(filter(None, most), key=lambda one: one.worth, default=_Reading())
    return [_accuracy(reading), _compute(reading), _seconds(results), _robustness(results)]


@dataclass(frozen=True)
class _Reading:
    """Figures of both networks over the same images."""

    gated: Mapping[str, Any] | None = None
    dense: Mapping[str, Any] | None = None
    reference: str = "dense"
    about: str = ""

    @property
    def worth(self) -> int:
        """Prefer both networks, then the gated one; of as good ones the first."""
        return 0 if self.gated is None else 1 + (self.dense is not None)

    @property
    def images(self) -> int:
        """How many they are of."""
        return 0 if self.gated is None else int(self.gated["images"])


def _of_networks(networks: Sequence[Measured]) -> Iterator[_Reading]:
    for gated in (network for network in networks if network.decides):
        if dense := before_gating(gated, networks):
            about = f"{gated.name} beside {dense.name}; {gated.data}"
            figures = {**gated.figures, **gated.beside(dense)}
            yield _Reading(figures, dense.figures, dense.kind, about)
        yield _Reading(gated.figures, about=f"{gated.name}; {gated.data}")
    for dense in (network for network in networks if network.is_reference):
        yield _Reading(None, dense.figures, dense.kind, f"{dense.name}; {dense.data}")


def _of_attacks(results: Results) -> Iterator[_Reading]:
    for title, attack in results.attacks.items():
        chosen = attack.rows[(attack.rows["epsilon"] == 0) & (attack.rows["defense"] == "none")]
        rows = {row["network"]: row for row in records(chosen)}
        gated, others = rows.pop(GATED, None), [*rows.items()]
        if gated and others:
            name, dense = others[0]
            gated |= {"gflops_dense": dense["gflops_executed"]}
            yield _Reading(gated, dense, str(name), f"{title}; {attack.data}")


def _of_runs(results: Results) -> Iterator[_Reading]:
    for name, run in results.runs.items():
        if run.has_gates and run.metrics["best"].any():
            [best] = records(run.metrics[run.metrics["best"]].tail(1))
            figures = {key.removeprefix("val_"): value for key, value in best.items()}
            about = f"{name}, epoch {best['epoch']}, validation images"
            yield _Reading(figures, about=about)


def _accuracy(reading: _Reading) -> Headline:
    sides = _right(GATED, reading.gated), _right(reading.reference, reading.dense)
    gated, paired = reading.gated or {}, ""
    if reading.dense and "difference" in gated:
        points, error = gated["difference"], gated["difference_stderr"]
        paired = f"{points:+.1f} ± {error:.1f} points, paired image by image"
    if reading.gated and not reading.dense:
        paired = "aigtool evaluate dense.safetensors --out TRACE measures the other"
    return Headline("Accuracy, top-1", sides, _joined(paired, reading.about))


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
    return Headline("GFLOPs an image", sides, _joined("multiply-accumulates", reading.about))


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
        about = f"{row['speedup']:.2f} times as fast at {share(row['execution_rate'])} of gated "
        about += f"blocks executed; engine {row['engine']}, {row['device']}, {row['dtype']}, "
        about += f"threads: {row['threads']}; in turns; settings measured in {name}: {len(rows)}"
        return Headline(title, (sides[0], sides[1]), about)
    return Headline(title, (Side(GATED), Side("dense")), "aigtool bench measures seconds")


def _robustness(results: Results) -> Headline:
    if not results.attacks:
        sides = Side(GATED), Side("dense")
        return Headline("Accuracy under attack", sides, "aigtool attack does that")
    attack = max(results.attacks.values(), key=lambda one: int(one.rows["images"].max()))
    rows = attack.rows[attack.rows["defense"] == "none"]
    rows = rows[_near(rows, attack.told_at)]
    strong = rows[rows["attack"] == "pgd"]
    rows = rows[rows["attack"] == (strong if len(strong) else rows)["attack"].iloc[0]]
    # Of what an attack sees of gates, the last that was asked for, the worst by custom.
    chosen = {row["network"]: row for row in records(rows)}
    told = next(iter(chosen.values()))
    other = str(next((name for name in chosen if name != GATED), "dense"))
    at = told_epsilon(attack.told_at, told["norm"])
    gates = chosen.get(GATED, {}).get("gate_gradient")
    behind = attack.rows[(attack.rows["attacker"] == UNAWARE)]
    behind = behind[_near(behind, attack.told_at) & (behind["attack"] == told["attack"])]
    parts = [f"gates {gates}" if gates else "", _behind(behind), _checked(attack), attack.data]
    if len(results.attacks) > 1:
        parts.append(f"of {len(results.attacks)} attacks the one on most images")
    return Headline(
        f"Accuracy under {told_attack(told, attack.target)}, {at}",
        (_right(GATED, chosen.get(GATED)), _right(other, chosen.get(other))),
        _joined(*parts),
    )


def _checked(attack: Attack) -> str:
    if attack.checks.empty:
        return ""
    failed = int((~attack.checks["passed"]).sum())
    if not failed:
        return f"all {len(attack.checks)} sanity checks passed"
    return f"{failed} of {len(attack.checks)} sanity checks in doubt: gradients may be hidden"


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
    rows = rows.drop_duplicates(["quality", "network"], keep="last")
    told = [
        f"quality {quality:g}, "
        + ", ".join(f"{row['network']} {percent(row['top1'])}" for row in records(part))
        for quality, part in rows.groupby("quality", sort=False)
    ]
    return f"behind JPEG, of which the attacker does not know: {'; '.join(told)}" if told else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
