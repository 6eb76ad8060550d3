"""What accuracy an attack leaves: networks, epsilons and defences on the same images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from aigtool.conversion import gate_policy, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.gates import Policy
from aigtool.models.description import PixelNetwork
from aigtool.robustness.attacks import LINF, loss_gradient, move
from aigtool.robustness.defenses import check_quality, jpeg


@dataclass(frozen=True)
class Judged:
    """A network to attack.

    Attributes:
        network: Takes pixels, in evaluation mode.
        flops: Counts of it.
        policy: Its gate policy; ``open`` stands for the network before gating.
    """

    network: PixelNetwork
    flops: NetworkFlops
    policy: Policy

    @property
    def decides(self) -> bool:
        """Whether its gates decide image by image."""
        return self.policy in ("argmax", "sampled") and bool(self.flops.gated_blocks)


@dataclass
class _Tally:
    correct: int = 0
    correct_of_right: int = 0
    executed: int = 0
    gflops: float = 0.0
    agreeing: int = 0


@dataclass(frozen=True)
class _Cases:
    epsilons: Sequence[float]
    qualities: Sequence[int | None]


@dataclass(frozen=True)
class _Outcome:
    right: Tensor
    executed: Tensor


@dataclass
class _Totals:
    images: int = 0
    right: dict[tuple[str, int | None], int] = field(default_factory=dict)
    cells: dict[tuple[str, float, int | None], _Tally] = field(default_factory=dict)


def attack_accuracy(
    networks: Mapping[str, Judged],
    images: ImageSet,
    *,
    epsilons: Sequence[float],
    qualities: Sequence[int] = (75,),
    batch_size: int = 128,
    workers: int | None = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Attack networks with FGSM and report the accuracy left, with and without JPEG.

    Each network is attacked with its own gradients, unaware of the defence. Under a defence the
    clean image too goes through it before it counts as right.

    Args:
        networks: By the name that the rows give them: ``gated``, ``dense``, ``open``.
        images: The same for every row.
        epsilons: In pixels of 0..1; 0 is the clean image.
        qualities: JPEG qualities to defend with; the undefended network is always there.
        batch_size: Images a batch.
        workers: Processes that read images, as of ``load_batches``.
        progress: Called with the number of images done after each batch.

    Returns:
        A row for each network, epsilon and defence, with the columns of ``aigtool attack --json``:
        ``top1_of_clean_right`` is over the images that were right before the attack;
        ``gate_agreement`` is the share of decisions that equal those on the clean image without a
        defence.

    Raises:
        UserError: An epsilon or a quality is out of range, or there is none.
    """
    if not epsilons:
        raise UserError("no epsilon given: expected at least one, such as 8/255")
    for epsilon in epsilons:
        LINF.check(epsilon)
    for quality in qualities:
        check_quality(quality)
    cases = _Cases(list(dict.fromkeys(epsilons)), [None, *dict.fromkeys(qualities)])
    totals = _Totals()
    for pixels, labels in load_batches(images, batch_size=batch_size, workers=workers):
        for name, judged in networks.items():
            with gate_policy(judged.network, judged.policy):
                _attack_batch(name, judged, (pixels, labels), cases, totals)
        totals.images += len(labels)
        progress(len(labels))
    rows = pd.DataFrame(
        _row(name, judged, epsilon, quality, totals)
        for name, judged in networks.items()
        for quality in cases.qualities
        for epsilon in cases.epsilons
    )
    return rows.astype({"quality": "Int64"})


def _attack_batch(
    name: str,
    judged: Judged,
    batch: tuple[Tensor, Tensor],
    cases: _Cases,
    totals: _Totals,
) -> None:
    pixels, labels = (tensor.to(judged.network.mean.device) for tensor in batch)
    direction = loss_gradient(judged.network, pixels, labels).sign()
    clean = {quality: _judge(judged, pixels, labels, quality) for quality in cases.qualities}
    for quality, outcome in clean.items():
        right = totals.right.get((name, quality), 0)
        totals.right[name, quality] = right + int(outcome.right.sum())
    for epsilon in cases.epsilons:
        attacked = move(pixels, direction, epsilon=epsilon)
        for quality in cases.qualities:
            outcome = clean[quality] if not epsilon else _judge(judged, attacked, labels, quality)
            tally = totals.cells.setdefault((name, epsilon, quality), _Tally())
            tally.correct += int(outcome.right.sum())
            tally.correct_of_right += int((outcome.right & clean[quality].right).sum())
            tally.executed += int(outcome.executed.sum())
            gflops = judged.flops.executed(outcome.executed.numpy(), judged.policy)
            tally.gflops += float(gflops.sum())
            tally.agreeing += int((outcome.executed == clean[None].executed).sum())


def _judge(judged: Judged, pixels: Tensor, labels: Tensor, quality: int | None) -> _Outcome:
    seen = pixels if quality is None else jpeg(pixels, quality=quality)
    with torch.inference_mode(), recorded_decisions(judged.network) as decisions:
        right = judged.network(seen).argmax(1) == labels
        made = [decision.scale > 0 for decision in decisions.values()]
    executed = torch.stack(made, 1).cpu() if made else torch.zeros(len(labels), 0, dtype=torch.bool)
    return _Outcome(right.cpu(), executed)


def _row(
    name: str, judged: Judged, epsilon: float, quality: int | None, totals: _Totals
) -> dict[str, Any]:
    tally, images = totals.cells[name, epsilon, quality], totals.images
    right = totals.right[name, quality]
    decisions = images * len(judged.flops.gated_blocks)
    return {
        "network": name,
        "attack": "fgsm",
        "norm": "linf",
        "steps": 1,
        "epsilon": epsilon,
        "defense": "none" if quality is None else "jpeg",
        "quality": quality,
        "attacker": None if quality is None else "static",
        "gate_gradient": "straight-through" if judged.decides else None,
        "correct": tally.correct,
        "top1": 100 * tally.correct / images,
        "top1_of_clean_right": 100 * tally.correct_of_right / right if right else None,
        "images": images,
        "execution_rate": tally.executed / decisions if decisions else None,
        "gflops_executed": tally.gflops / images,
        "gate_agreement": tally.agreeing / decisions if judged.decides else None,
    }
