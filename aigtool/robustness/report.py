"""All that is asked of networks under attack: accuracies, gates, compute, checks, examples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.robustness.balls import Ball
from aigtool.robustness.cases import (
    Attacked,
    Attacker,
    Case,
    GateGradient,
    Judged,
    computed,
)
from aigtool.robustness.compute import GOALS
from aigtool.robustness.defenses import SUBSAMPLING, Defense, jpeg_encoder
from aigtool.robustness.evaluation import attack_networks, attacks_an_image
from aigtool.robustness.pictures import Example, Examples, ImageWriter, remove_images
from aigtool.robustness.sanity import Check, sanity_checks
from aigtool.robustness.slowdown import Timed, attack_compute
from aigtool.robustness.suite import Attack, Fgsm, Noise, Pgd
from aigtool.robustness.tables import accuracy_rows, gate_rows

TOLD_AT = 8 / 255
"""Checks and figures are of this epsilon where it was asked for, else of the largest."""
_EXAMPLES = 6
_TIMED = 100


def common_ball(attacks: Iterable[Attack]) -> Ball:
    """Return the ball that attacks share.

    Raises:
        UserError: They have none in common, by which an epsilon could be meant.

    Example:
        >>> common_ball([Fgsm()]).norm
        'linf'
    """
    balls = {attack.ball.norm: attack.ball for attack in attacks}
    if len(balls) != 1:
        raise UserError(
            f"attacks by {' and '.join(balls) or 'no norm'}: expected one norm, by which all "
            "epsilons are meant; run those of another norm apart"
        )
    return next(iter(balls.values()))


@dataclass(frozen=True)
class AttackPlan:
    """What to do; the defaults are those of ``aigtool attack``.

    Attributes:
        epsilons: As of ``attack_networks``, like all up to ``is_eight_bit``.
        attacks: What to attack with.
        defenses: Such as ``jpeg_defense()``.
        attackers: ``static``, ``adaptive``.
        gate_gradients: ``straight-through``, ``frozen``, ``worst``.
        target: A class, ``least-likely``, or None.
        is_eight_bit: Whether attacked images are rounded to 8 bits.
        compute: Epsilons of the attacks on compute, by the norm of the attacks; none for no such
            attack.
        steps: Of those, and of PGD in the checks.
        subset: Images, spread evenly, for those and the checks.
        seed: Of all that is drawn.
    """

    epsilons: Sequence[float]
    attacks: Sequence[Attack] = (Fgsm(),)
    defenses: Sequence[Defense] = ()
    attackers: Sequence[Attacker] = ("static",)
    gate_gradients: Sequence[GateGradient] = ("straight-through",)
    target: int | str | None = None
    is_eight_bit: bool = False
    compute: Sequence[float] = ()
    steps: int = 20
    subset: int = 200
    seed: int = 0

    @property
    def ball(self) -> Ball:
        """That of the attacks, which the checks and the attacks on compute go by.

        Raises:
            UserError: They have none in common.
        """
        return common_ball(self.attacks)

    @property
    def told_at(self) -> float:
        """The epsilon of checks and figures; 0 if there is no other."""
        near = [epsilon for epsilon in self.epsilons if abs(epsilon - TOLD_AT) < 1e-9]
        return near[0] if near else max(self.epsilons)


@dataclass(frozen=True)
class AttackReport:
    """What came of it.

    Attributes:
        data: Which images.
        record: What it was made with.
        rows: Of ``accuracy_rows``.
        gates: Of ``gate_rows``.
        compute: Of ``attack_compute``.
        checks: Of ``sanity_checks``.
        examples: Some images.
        case: Of which they are; None without any.
        classes: Class names, where they are known.
    """

    data: str
    record: Mapping[str, Any]
    rows: pd.DataFrame
    gates: pd.DataFrame
    compute: pd.DataFrame
    checks: Sequence[Check]
    examples: Sequence[Example]
    case: Case | None
    classes: Sequence[str] | None


Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a part is: its name and its images."""


def _unseen(_name: str, _images: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def report_attack(
    networks: Mapping[str, Judged],
    images: ImageSet,
    plan: AttackPlan,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    served: Mapping[str, nn.Module] | None = None,
    save_images: Path | None = None,
    batch_size: int = 128,
    workers: int | None = 0,
    progress: Progress = _unseen,
) -> AttackReport:
    """Attack networks, and check what that finds.

    Args:
        networks: As of ``attack_networks``.
        images: What is attacked.
        plan: How.
        groups: Labels by name, whose execution is told apart.
        served: By the names of networks, what to take the times of attacks on compute from; no
            times without those of the first and the last network.
        save_images: Where attacked images go, which are then judged in 8 bits, as they are saved;
            nowhere by default. Images that an earlier run left there are deleted.
        batch_size: Images a batch.
        workers: As of ``load_batches``.
        progress: Shows how far it is.

    Raises:
        UserError: As of what it calls.
    """
    for epsilon in (*plan.epsilons, *plan.compute):
        plan.ball.check(epsilon)
    if save_images is not None:
        plan = replace(plan, is_eight_bit=True)
    name, first = next(iter(networks.items()))
    examples = _examples(name, first, plan, len(images))
    writer = (
        None if save_images is None else ImageWriter(save_images, images.classes, images.filename)
    )

    def watch(batch: Attacked) -> None:
        examples(batch)
        if writer:
            writer(batch)

    def batches(chosen: ImageSet) -> Any:
        return load_batches(chosen, batch_size=batch_size, workers=workers)

    ways: dict[str, Any] = {
        "attacks": plan.attacks,
        "defenses": plan.defenses,
        "attackers": plan.attackers,
        "gate_gradients": plan.gate_gradients,
    }
    times = attacks_an_image(networks, **ways)
    with progress("attacking", times * len(images)) as advance:
        found = attack_networks(
            networks,
            batches(images),
            epsilons=plan.epsilons,
            **ways,
            target=plan.target,
            is_eight_bit=plan.is_eight_bit,
            seed=plan.seed,
            watch=watch,
            progress=advance,
        )
    if writer:
        remove_images(writer.folder, writer.written)
    few = images.limited(plan.subset)
    compute = pd.DataFrame()
    if plan.compute:
        *_, last = networks
        timed = None
        if served and {name, last} <= {*served}:
            timed = Timed(served[name], served[last], max(1, len(few) // _TIMED))
        times = len(GOALS) * len(plan.compute)
        with progress("attacking compute", times * len(few)) as advance:
            compute = attack_compute(
                first,
                batches(few),
                epsilons=plan.compute,
                ball=plan.ball,
                steps=plan.steps,
                is_eight_bit=plan.is_eight_bit,
                timed=timed,
                progress=advance,
            )
    checks: list[Check] = []
    if plan.told_at:
        made = [Noise(), Fgsm(), Pgd(), Pgd()]  # the last as far as any image may go
        times = attacks_an_image(networks, attacks=made, gate_gradients=plan.gate_gradients)
        with progress("checking", times * len(few)) as advance:
            checks = sanity_checks(
                networks,
                batches(few),
                epsilon=plan.told_at,
                ball=plan.ball,
                gate_gradients=plan.gate_gradients,
                steps=plan.steps,
                is_eight_bit=plan.is_eight_bit,
                seed=plan.seed,
                progress=advance,
            )
    return AttackReport(
        f"{images.name} {images.split}".strip() + f", {len(images)} images",
        _record(plan, len(few)),
        accuracy_rows(found),
        gate_rows(found, groups),
        compute,
        checks,
        examples.kept,
        examples.case,
        images.classes,
    )


def _examples(name: str, judged: Judged, plan: AttackPlan, images: int) -> Examples:
    spread = {round((i + 0.5) * images / _EXAMPLES - 0.5) for i in range(_EXAMPLES)}

    def is_wanted(case: Case) -> bool:
        return (
            case.network == name
            and case.attack == plan.attacks[0].name
            and case.gate_gradient in (None, computed(plan.gate_gradients)[0])
            and case.attacker is None
            and case.epsilon == plan.told_at
        )

    return Examples(judged, spread, is_wanted)


def _told(attack: Attack) -> dict[str, Any]:
    told: dict[str, Any] = {"name": attack.name, "norm": attack.ball.norm, "steps": attack.steps}
    if isinstance(attack, Pgd):
        told |= {"step_size": attack.step_size, "restarts": attack.restarts}
    return told


def _record(plan: AttackPlan, few: int) -> dict[str, Any]:
    is_jpeg = any(defense.name == "jpeg" for defense in plan.defenses)
    return {
        "attacks": [_told(attack) for attack in plan.attacks],
        "gate_gradients": list(plan.gate_gradients),
        "target": plan.target,
        "eight_bit": plan.is_eight_bit,
        "seed": plan.seed,
        "steps": plan.steps,
        "told_at": plan.told_at,
        "norm": plan.ball.norm,
        "subset": few,
        "jpeg": f"{jpeg_encoder()}, chroma subsampling {SUBSAMPLING}" if is_jpeg else None,
    }
