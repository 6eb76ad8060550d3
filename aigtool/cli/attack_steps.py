"""What ``aigtool attack`` does with its options, and how it shows what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from aigtool.analysis.groups import read_groups
from aigtool.cli.console import note, percent, print_facts, print_rows, print_table, share, warn
from aigtool.cli.opening import open_for, open_reference, ready, ready_to_serve
from aigtool.data.images import DataSource, ImageSet
from aigtool.errors import UserError
from aigtool.models.files import load_model
from aigtool.models.override import InputOverride
from aigtool.output import records
from aigtool.robustness.balls import BALLS, Ball
from aigtool.robustness.cases import LEAST_LIKELY, Attacker, GateGradient, Judged
from aigtool.robustness.defenses import jpeg_defense
from aigtool.robustness.libraries import (
    LIBRARIES,
    OWN,
    check_attack,
    library_attack,
    library_attacks,
)
from aigtool.robustness.plots import told_attack, told_defense, told_epsilon
from aigtool.robustness.report import AttackPlan, AttackReport, common_ball
from aigtool.robustness.sanity import Check
from aigtool.robustness.slowdown import can_slow
from aigtool.robustness.suite import Attack, Fgsm, Noise, Pgd
from aigtool.robustness.tables import group_rows

GATED = "gated"
_COMPUTE = (2 / 255, 8 / 255)


def show_attacks() -> None:
    """Print every attack, by which norms it goes, and why others cannot be run."""
    rows = [[name, "linf or l2", "ours"] for name in OWN]
    for library in LIBRARIES:
        if find_spec(library) is None:
            rows.append([f"{library}:...", "-", f"pip install 'aigtool[{library}]'"])
            continue
        for one in library_attacks(library):
            how = "least distance, compared with epsilon" if one.is_least else "within epsilon"
            rows.append([one.name, " or ".join(one.norms) or "-", one.refused or how])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print_rows(dict(zip(("attack", "norm", ""), widths, strict=True)), rows)


@dataclass(frozen=True)
class Wanted:
    """Options of attacks."""

    norm: Literal["linf", "l2"] | None
    steps: int
    step_size: float | None
    restarts: int
    is_targeted: bool

    @property
    def ball(self) -> Ball | None:
        """Of the norm, if there is one."""
        return None if self.norm is None else BALLS[self.norm]


def named_attacks(text: str, wanted: Wanted) -> list[Attack]:
    """Read attacks such as ``fgsm,foolbox:LinfPGD``.

    Raises:
        UserError: One is not known or not installed, comes twice, or an option goes with none.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        check_attack(name)
    if len({*names}) < len(names):
        raise UserError(f"attack {text!r}: expected each attack once")
    if Pgd.name not in names and (wanted.restarts or wanted.step_size is not None):
        option = "--restarts" if wanted.restarts else "--step-size"
        raise UserError(f"{option} without pgd, which it is about: give --attack pgd, or leave it")
    if wanted.is_targeted and (others := [n for n in names if n not in (Fgsm.name, Pgd.name)]):
        raise UserError(f"--target with {others[0]}: expected fgsm and pgd alone, which can aim")
    return [_attack(name, wanted) for name in names]


def _attack(name: str, wanted: Wanted) -> Attack:
    if name not in OWN:
        return library_attack(name, wanted.ball)
    ball = wanted.ball or BALLS["linf"]
    if name == Noise.name:
        return Noise(ball)
    if name == Fgsm.name:
        return Fgsm(ball, wanted.is_targeted)
    return Pgd(ball, wanted.steps, wanted.step_size, wanted.restarts, wanted.is_targeted)


@dataclass(frozen=True)
class Subjects:
    """What is attacked: networks, as they are served too, and images."""

    networks: Mapping[str, Judged]
    served: Mapping[str, nn.Module]
    images: ImageSet

    @property
    def decides(self) -> bool:
        """Whether there are gates that decide."""
        return any(judged.decides for judged in self.networks.values())


def find_subjects(
    model: Path,
    dense: Path | None,
    override: InputOverride,
    source: DataSource,
    split: str | None,
    limit: int | None,
    device: torch.device,
    seed: int,
) -> Subjects:
    """Load a network and the one before gating, and open the images."""
    loaded = load_model(model).overridden(override)
    images = open_for(loaded, source, split, limit)
    kind, reference = open_reference(loaded, model, dense, override)
    other = ready(reference, device, seed)
    networks = {kind: Judged(other.network, other.flops, "open")}
    served: dict[str, nn.Module] = {}
    if loaded.description.gated_blocks:
        gated = ready(loaded, device, seed)
        policy = loaded.description.policy
        networks = {GATED: Judged(gated.network, gated.flops, policy), **networks}
        if reference is not loaded:
            served = {
                GATED: ready_to_serve(loaded, device, seed).network,
                kind: ready_to_serve(reference, device, seed).network,
            }
    return Subjects(networks, served, images)


def check_amounts(
    attacks: Sequence[Attack], epsilons: Sequence[float], compute: Sequence[float]
) -> None:
    """Refuse epsilons that the attacks cannot go by.

    Raises:
        UserError: One is out of range, attacks go by two norms, or one on compute has no room.
    """
    ball = common_ball(attacks)
    for epsilon in (*epsilons, *compute):
        ball.check(epsilon)
    if 0 in compute:
        raise UserError("compute 0: expected epsilons above 0, such as 2/255, or none")


def plan_attack(
    subjects: Subjects,
    *,
    attacks: Sequence[Attack],
    qualities: Sequence[int],
    gradients: Sequence[GateGradient],
    attackers: Sequence[Attacker],
    target: str | None,
    compute: Sequence[float] | None,
    **options: Any,
) -> AttackPlan:
    """Put options together.

    Raises:
        UserError: They do not go together with the networks.
    """
    for gradient in gradients:
        if gradient != "straight-through" and not subjects.decides:
            raise UserError(
                f"gate gradient {gradient}: the network has no gates that decide; expected one "
                "that convert or finetune gave gates, or leave the option out"
            )
    can_be_slowed = any(map(can_slow, subjects.networks.values()))
    if compute and not can_be_slowed:
        raise UserError(
            "compute: the network has no gates that decide by argmax; expected one that convert or "
            "finetune gave gates, or --compute none"
        )
    plan = AttackPlan(
        attacks=attacks,
        defenses=[jpeg_defense(quality) for quality in dict.fromkeys(qualities)],
        attackers=attackers,
        gate_gradients=gradients,
        target=_target(target, subjects.images.classes),
        **options,
    )
    is_linf = plan.ball.norm == "linf"
    if compute is None and can_be_slowed and not is_linf:
        note("no attack on compute: name its epsilons by l2, such as --compute 0.5")
    if compute is None:
        compute = _COMPUTE if can_be_slowed and is_linf else ()
    return replace(plan, compute=compute)


def _target(given: str | None, classes: Sequence[str] | None) -> int | str | None:
    if given is None or given == LEAST_LIKELY:
        return given
    if classes and given in classes:
        return classes.index(given)
    if classes is None and given.isdecimal():
        return int(given)
    if classes is None:
        raise UserError(f"target {given!r}: expected {LEAST_LIKELY} or the number of a class")
    near = get_close_matches(given, [LEAST_LIKELY, *classes], n=3)
    known = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
    hint = f"near are {', '.join(near)}" if near else f"classes are {known}"
    raise UserError(f"target {given!r}: expected {LEAST_LIKELY} or a class; {hint}")


def labelled(groups: str | None, classes: Sequence[str] | None) -> dict[str, list[int]]:
    """Return the labels of groups by name."""
    if groups is None:
        return {}
    named = read_groups(groups, classes)
    return {
        group: [(classes or ()).index(name) for name in members] for group, members in named.items()
    }


def show(report: AttackReport) -> None:
    """Print what came of it."""
    bits = ", attacked ones rounded to 8 bits" * report.record["eight_bit"]
    print_facts("", [("data", report.data + bits), ("seed", str(report.record["seed"]))])
    rows = records(report.rows)
    ways = ("attack", "norm", "steps", "defense", "quality", "attacker")
    for way in dict.fromkeys(tuple(row[key] for key in ways) for row in rows):
        chosen = [row for row in rows if tuple(row[key] for key in ways) == way]
        _show_way(chosen, report)
    if report.gates.get("group", pd.Series(dtype=str)).nunique() > 1:
        _show_groups(report)
    if not report.compute.empty:
        _show_compute(records(report.compute))
    if report.checks:
        _show_checks(report)
    if report.rows["doubt"].any():
        warn("doubt: an attack that knows of the defence leaves more than one that does not")


def _show_way(rows: Sequence[Mapping[str, Any]], report: AttackReport) -> None:
    lines = list(dict.fromkeys((row["network"], row["gate_gradient"]) for row in rows))
    cell = {(row["network"], row["gate_gradient"], row["epsilon"]): row for row in rows}
    network, gates = next(line for line in reversed(lines) if line[0] == lines[0][0])
    is_compared = len({name for name, _ in lines}) > 1
    table = []
    for epsilon in dict.fromkeys(row["epsilon"] for row in rows):
        told = cell[network, gates, epsilon]
        shown = (cell[name, gradient, epsilon] for name, gradient in lines)
        table.append(
            [told_epsilon(epsilon, told["norm"]), *(_left(row, len(lines) > 2) for row in shown)]
        )
        table[-1] += [_difference(told)] if is_compared else []
        table[-1] += [share(told["gate_agreement"])]
    first = rows[0]
    target = report.record["target"]
    heads = [*map(_head, lines)]
    heads += [f"{gates or network} -\n{lines[-1][0]}, paired"] if is_compared else []
    print_table(
        f"{told_attack(first, target)}, {told_defense(first)}: top-1 %, right ones of those right "
        "before, [95 % interval]; ± is a standard error",
        ["epsilon", *heads, f"{gates or 'gates'},\nas clean"],
        table,
    )
    if target is not None:
        reached = ", ".join(
            f"{told_epsilon(row['epsilon'], row['norm'])} {row['network']} "
            f"{row['hits']} of {row['aimed']}"
            for row in rows
            if row["epsilon"]
        )
        print_facts("", [("target reached", reached)])


def _head(line: tuple[str, str | None]) -> str:
    network, gates = line
    return network if gates is None else "\n".join([f"{network},", *gates.split("-")])


def _left(row: Mapping[str, Any], is_narrow: bool) -> str:
    parts = [
        f"{row['top1']:.1f}",
        f"{row['correct_of_clean_right']}/{row['clean_right']}" + " doubt" * row["doubt"],
    ]
    interval = f"[{row['top1_low']:.0f}, {row['top1_high']:.0f}]"
    return ("\n" if is_narrow else " ").join(parts) + f"\n{interval}"


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    p = row["mcnemar_p"]
    return f"{row['difference']:+.1f} ± {row['difference_stderr']:.1f}\np {p:.2g}"


def _show_groups(report: AttackReport) -> None:
    rows = group_rows(report.gates)
    rows = rows[rows["defense"] == "none"]
    gates = rows["gate_gradient"].fillna("")
    rows = rows[(gates == gates.iloc[0]) | (gates == "")]
    groups = list(dict.fromkeys(rows["group"]))
    cell = {(r["attack"], r["epsilon"], r["group"]): r for r in records(rows)}
    table = [
        [
            told_attack(cell[attack, epsilon, groups[0]]),
            told_epsilon(epsilon, report.record["norm"]),
            *(
                f"{share(r['execution_rate'])}, {share(r['gate_agreement'])}"
                for r in (cell[attack, epsilon, group] for group in groups)
            ),
        ]
        for attack, epsilon in dict.fromkeys((a, e) for a, e, _ in cell)
    ]
    images = {r["group"]: r["images"] for r in records(rows)}
    print_table(
        f"Execution rate, and decisions as on the clean image; no defence, gates {gates.iloc[0]}",
        ["attack", "epsilon", *(f"{group}\n({images[group]} images)" for group in groups)],
        table,
        text_columns=2,
    )


def _show_compute(rows: Sequence[Mapping[str, Any]]) -> None:
    dense = rows[0]["gflops_dense"]
    clean = rows[0]["gflops_clean"] / dense
    has_times = rows[0].get("clean_ms") is not None
    table = [
        [
            row["goal"],
            told_epsilon(row["epsilon"], row["norm"]),
            share(row["gflops_attacked"] / dense),
            share(row["gflops_worst"] / dense),
            share(row["saving_destroyed"]),
            percent(100 * row["answers_kept"]),
            f"{row['attacked_ms']:.2f}" if has_times else "-",
        ]
        for row in rows
    ]
    times = ""
    if has_times:
        times = f"; ms an image: dense {rows[0]['dense_ms']:.2f}, clean {rows[0]['clean_ms']:.2f}"
    print_table(
        f"Attacks on compute, {rows[0]['images']} images: clean ones take {share(clean)} of dense"
        + times,
        [
            *("", "epsilon", "GFLOPs\nof dense", "worst\nimage", "saving\ndestroyed"),
            *("answers\nkept", "ms"),
        ],
        table,
        text_columns=2,
    )


def _show_checks(report: AttackReport) -> None:
    names = list(dict.fromkeys(check.name for check in report.checks))
    cell = {(check.network, check.gate_gradient, check.name): check for check in report.checks}
    lines = list(dict.fromkeys((check.network, check.gate_gradient) for check in report.checks))
    table = []
    for name in names:
        found = [cell.get((*line, name)) for line in lines]
        table.append([name, *("-" if check is None else _verdict(check) for check in found)])
    at = told_epsilon(report.record["told_at"], report.record["norm"])
    kind = "untargeted attacks, " if report.record["target"] is not None else ""
    print_table(
        f"Sanity checks, {report.record['subset']} images, {kind}epsilon {at}: right answers that "
        "the attack leaves ≤ what it may leave",
        ["", *map(_head, lines)],
        table,
    )
    for check in report.checks:
        if not check.passed:
            gates = f", gates {check.gate_gradient}" if check.gate_gradient else ""
            warn(f"{check.network}{gates}: not so that {check.name}: {check.verdict}")


def _verdict(check: Check) -> str:
    return f"{check.correct} ≤ {check.other:g}\n{'passed' if check.passed else 'doubt'}"
