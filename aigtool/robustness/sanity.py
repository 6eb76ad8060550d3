"""Checks that attacks found what there is to find, and that no network hid its gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aigtool.conversion import gate_policy
from aigtool.intervals import mcnemar, wilson_interval
from aigtool.robustness.attacks import LINF
from aigtool.robustness.balls import Ball
from aigtool.robustness.cases import Attacked, GateGradient, Judged, Robustness, computed
from aigtool.robustness.evaluation import attack_networks
from aigtool.robustness.suite import Fgsm, Noise, Pgd
from aigtool.robustness.tables import SIGNIFICANT

DOUBT = "read this figure with doubt: gradients may be hidden"

CHANCE = "PGD leaves at most chance at an epsilon that makes any image grey"
_PAIRS = {
    "PGD is at least as strong as FGSM": ("pgd", "fgsm"),
    "noise is weaker than FGSM": ("fgsm", "noise"),
    "FGSM from the other network is no stronger than its own": ("fgsm", "transfer"),
}
"""By what should hold, the attack that should leave no more than the other."""

_Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Check:
    """One check of one network.

    Attributes:
        network: Its name.
        gate_gradient: What the attack saw of the gates; None where there is nothing to see.
        name: What should hold.
        correct: Answers that the attack leaves right, which should not be more than the other.
        other: Those that are right under the other attack; by chance, for ``CHANCE``.
        images: Of how many.
        passed: Whether it holds, or fails by no more than chance.
    """

    network: str
    gate_gradient: GateGradient | None
    name: str
    correct: int
    other: float
    images: int
    passed: bool

    @property
    def verdict(self) -> str:
        """What to make of it."""
        return "passed" if self.passed else DOUBT

    def as_dict(self) -> dict[str, Any]:
        """Return it as a record."""
        return {**vars(self), "verdict": self.verdict}


def sanity_checks(
    networks: Mapping[str, Judged],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epsilon: float,
    ball: Ball = LINF,
    gate_gradients: Sequence[GateGradient] = ("straight-through",),
    steps: int = 20,
    is_eight_bit: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Check]:
    """Check what the field asks of figures of robustness (Athalye et al., ICML 2018, section 3).

    PGD is at least as strong as FGSM, and leaves at most chance where any image may become grey;
    noise is weaker than FGSM; FGSM made from the last network is no stronger on another than that
    network's own. A count that falls on the wrong side by no more than chance (McNemar's test, or
    the Wilson interval, 95 %) passes.

    Args:
        networks: As of ``attack_networks``; the last is the one to transfer from.
        batches: ``(pixels, labels)``, held in memory: a few hundred images do.
        epsilon: Of all but the check against chance.
        ball: By which norm that is meant.
        gate_gradients: As of ``attack_networks``.
        steps: Of PGD.
        is_eight_bit: As of ``attack_networks``.
        seed: Of the noise.
        progress: Called as by ``attack_networks``.
    """
    held = list(batches)
    moved: list[Tensor] = []
    *_, reference = networks

    def keep(batch: Attacked) -> None:
        case, once = batch.case, (None, computed(gate_gradients)[0])
        if (case.network, case.attack) == (reference, Fgsm.name) and case.gate_gradient in once:
            moved.append(batch.moved)

    options: dict[str, Any] = {
        "gate_gradients": gate_gradients,
        "is_eight_bit": is_eight_bit,
        "progress": progress,
    }
    attacks = [Noise(ball), Fgsm(ball), Pgd(ball, steps)]
    near = attack_networks(
        networks, held, epsilons=[epsilon], attacks=attacks, seed=seed, watch=keep, **options
    )
    far = attack_networks(
        networks, held, epsilons=[ball.unbounded(held[0][0])], attacks=attacks[2:], **options
    )
    checks: list[Check] = []
    for name, judged in networks.items():
        with gate_policy(judged.network, judged.policy), torch.inference_mode():
            logits = judged.network(held[0][0][:1].to(judged.network.mean.device))
            transferred = None if name == reference else _right(judged, moved, near.labels)
        for gradient in gate_gradients if judged.decides else (None,):
            right = {case.attack: r for case, r in _of(near, name, gradient)}
            [(_, right["far"])] = _of(far, name, gradient)
            right |= {} if transferred is None else {"transfer": transferred}
            checks += _checks(name, gradient, right, logits.shape[1])
    return checks


def _right(judged: Judged, moved: Sequence[Tensor], labels: npt.NDArray[np.int64]) -> _Right:
    answers = [judged.network(x.to(judged.network.mean.device)).argmax(1).cpu() for x in moved]
    right: _Right = torch.cat(answers).numpy() == labels
    return right


def _of(
    found: Robustness, network: str, gradient: GateGradient | None
) -> Iterator[tuple[Any, _Right]]:
    for case, tally in found.tallies.items():
        if case.network == network and case.gate_gradient in (gradient, None):
            yield case, np.concatenate(tally.right)


def _checks(
    network: str, gradient: GateGradient | None, right: Mapping[str, _Right], classes: int
) -> Iterator[Check]:
    for name, (stronger, weaker) in _PAIRS.items():
        if weaker in right:
            ours, theirs = right[stronger], right[weaker]
            more, fewer, p = mcnemar(ours, theirs)
            passed = more <= fewer or p >= SIGNIFICANT
            counts = int(ours.sum()), int(theirs.sum())
            yield Check(network, gradient, name, *counts, len(ours), passed)
    left = right["far"]
    low, _ = wilson_interval(left.sum(), len(left))
    chance = 1 / classes
    passed = float(low) <= chance
    yield Check(network, gradient, CHANCE, int(left.sum()), chance * len(left), len(left), passed)
