"""Attack networks on the same images: attacks, epsilons, gates and defences."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aigtool.conversion import gate_policy, recorded_decisions
from aigtool.errors import UserError
from aigtool.robustness.attacks import check_labels, frozen_gates
from aigtool.robustness.cases import (
    ATTACKERS,
    GATE_GRADIENTS,
    LEAST_LIKELY,
    Attacked,
    Attacker,
    Case,
    GateGradient,
    Judged,
    Robustness,
    Tally,
    computed,
)
from aigtool.robustness.defenses import UNDEFENDED, Defended, Defense
from aigtool.robustness.suite import Attack, Fgsm


@dataclass(frozen=True)
class _Plan:
    """What is done to each batch."""

    epsilons: Sequence[float]
    attacks: Sequence[Attack]
    defenses: Sequence[Defense]
    attackers: Sequence[Attacker]
    gate_gradients: Sequence[GateGradient]
    is_eight_bit: bool = False
    seed: int = 0
    watch: Callable[[Attacked], None] = lambda _: None
    progress: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class _Batch:
    """Images, and what is wanted of an attack on them."""

    first: int
    pixels: Tensor
    labels: Tensor
    aims: Tensor | None

    @property
    def stays(self) -> Tensor:
        """Whether each image is left as it is, since its label is what is wanted, ``(N,)``."""
        if self.aims is None:
            return torch.zeros_like(self.labels, dtype=torch.bool)
        return self.aims == self.labels


@dataclass(frozen=True)
class _Outcome:
    right: Tensor
    hit: Tensor
    executed: Tensor

    def worst(self, other: "_Outcome") -> "_Outcome":
        """Return what an attacker has who may choose: for each image the one that did more harm."""
        taken = (self.right & ~other.right) | (other.hit & ~self.hit)
        return _Outcome(
            self.right & other.right,
            self.hit | other.hit,
            torch.where(taken[:, None], other.executed, self.executed),
        )


def attack_networks(
    networks: Mapping[str, Judged],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epsilons: Sequence[float],
    attacks: Sequence[Attack] = (Fgsm(),),
    defenses: Sequence[Defense] = (),
    attackers: Sequence[Attacker] = ("static",),
    gate_gradients: Sequence[GateGradient] = ("straight-through",),
    target: int | str | None = None,
    is_eight_bit: bool = False,
    seed: int = 0,
    watch: Callable[[Attacked], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Robustness:
    """Attack networks, each with its own gradients, and count the answers that stay right.

    Args:
        networks: By the name that the rows give them: ``gated``, then ``dense`` or ``open``.
        batches: ``(pixels, labels)``; the same for every row. ``pixel_batches`` makes them of a
            loader that normalises.
        epsilons: In pixels of 0..1; 0 is the clean image.
        attacks: What to attack with.
        defenses: Such as ``jpeg_defense()``; the undefended network is always there. Behind a
            defence the clean image too goes through it before it counts as right.
        attackers: ``static`` does not know of the defence; ``adaptive`` does, and takes its
            gradient straight through it (see ``Defended``).
        gate_gradients: What an attack sees of gates that decide: ``straight-through``, their
            gradient; ``frozen``, the decisions on the clean image as constants, the finished image
            being judged with gates that decide freely; ``worst``, an image counts as wrong if
            either attack makes it wrong.
        target: What attacks that are targeted want for an answer: a class, whose own images stay
            as they are, or ``least-likely``, the least likely of each network and clean image.
        is_eight_bit: Whether attacked images are rounded to what a file of 8 bits can hold, within
            the ball.
        seed: Of all that attacks draw.
        watch: Called with what was attacked, to look at it or save it.
        progress: Called with the number of images done after each attack on a batch; in all, each
            image counts ``attacks_an_image`` times.

    Raises:
        UserError: An epsilon or a pixel is out of range, there is none, an attacker or gate
            gradient is not known, a label is none of the network's outputs, ``target`` and attacks
            do not go together, or gates are asked for where no network has gates that decide.

    Example:
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.description import InputSpec, PixelNetwork
        >>> from aigtool.models.zoo import create_network
        >>> network = create_network("cifar_resnet20")
        >>> pixels = PixelNetwork(network, InputSpec.of(network)).eval()
        >>> judged = Judged(pixels, count_flops(network, (3, 32, 32)), "open")
        >>> batches = [(torch.rand(4, 3, 32, 32), torch.arange(4))]
        >>> found = attack_networks({"dense": judged}, batches, epsilons=[0, 8 / 255])
        >>> [case.epsilon for case in found.tallies]
        [0, 0.03137254901960784]
    """
    plan = _Plan(
        list(dict.fromkeys(epsilons)),
        attacks,
        [UNDEFENDED, *defenses],
        list(dict.fromkeys(attackers)),
        list(dict.fromkeys(gate_gradients)),
        is_eight_bit,
        seed,
        watch,
        progress,
    )
    _check(plan, networks, target)
    found = Robustness(networks, target)
    labels = [found.labels]
    first = 0
    for given, known in batches:
        _check_pixels(given)
        for name, judged in networks.items():
            pixels, right = (tensor.to(judged.network.mean.device) for tensor in (given, known))
            with gate_policy(judged.network, judged.policy):
                batch = _Batch(first, pixels, right, _aims(judged, pixels, right, target))
                clean = {d: _judge(judged, batch, pixels, d) for d in plan.defenses}
                for defense, outcome in clean.items():
                    key = name, defense.name, defense.quality
                    found.clean.setdefault(key, []).append(outcome.right.numpy())
                for case, outcome in _BatchAttack(name, judged, batch, plan).outcomes(clean):
                    tally = found.tallies.setdefault(case, Tally())
                    _count(tally, judged, batch, outcome, clean[UNDEFENDED])
        labels.append(known.cpu().numpy())
        first += len(known)
    if not first:
        raise UserError("no images to attack: expected one batch at least")
    found.labels = np.concatenate(labels)
    return found


def attacks_an_image(
    networks: Mapping[str, Judged],
    *,
    attacks: Sequence[Attack],
    defenses: Sequence[Defense] = (),
    attackers: Sequence[Attacker] = ("static",),
    gate_gradients: Sequence[GateGradient] = ("straight-through",),
) -> int:
    """Return how often each image is attacked, all epsilons at a time: see ``attack_networks``.

    Example:
        >>> attacks_an_image({}, attacks=[Fgsm()])
        0
    """
    plan = _Plan((), attacks, [UNDEFENDED, *defenses], attackers, gate_gradients)
    return sum(
        len(computed(gate_gradients)) if _sees_gates(judged, way.attack) else 1
        for judged in networks.values()
        for way in _ways(plan)
    )


def _check(plan: _Plan, networks: Mapping[str, Judged], target: int | str | None) -> None:
    if not plan.epsilons:
        raise UserError("no epsilon given: expected at least one, such as 8/255")
    attacks: list[tuple[Any, ...]] = [(a.name, a.ball.norm, a.steps) for a in plan.attacks]
    defenses: list[tuple[Any, ...]] = [(d.name, d.quality) for d in plan.defenses]
    for what, names in (("attack", attacks), ("defence", defenses)):
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"{what} {twice[0][0]} twice: expected each once, since rows name them so"
            )
    for attack in plan.attacks:
        for epsilon in plan.epsilons:
            attack.ball.check(epsilon)
        if attack.is_targeted != (target is not None):
            raise UserError(
                f"attack {attack.name} is {'' if attack.is_targeted else 'un'}targeted, target "
                f"{target}: expected targeted attacks with a target, and others without"
            )
    known: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "attacker": (plan.attackers, ATTACKERS),
        "gate gradient": (plan.gate_gradients, GATE_GRADIENTS),
    }
    for what, (given, expected) in known.items():
        if unknown := [name for name in given if name not in expected]:
            raise UserError(f"{what} {unknown[0]!r}: expected some of {', '.join(expected)}")
    asked = [gradient for gradient in plan.gate_gradients if gradient != "straight-through"]
    if asked and not any(judged.decides for judged in networks.values()):
        raise UserError(
            f"gate gradient {asked[0]}: no network here has gates that decide; expected a gated "
            "network, or straight-through"
        )


def _check_pixels(pixels: Tensor) -> None:
    if pixels.numel() and not 0 <= (least := pixels.min()) <= (most := pixels.max()) <= 1:
        raise UserError(
            f"pixels from {least:g} to {most:g}: expected 0 to 1; pixel_batches undoes what a "
            "loader normalises"
        )


def _aims(
    judged: Judged, pixels: Tensor, labels: Tensor, target: int | str | None
) -> Tensor | None:
    with torch.inference_mode():
        logits = judged.network(pixels[: None if target == LEAST_LIKELY else 1])
    check_labels(labels, logits.shape[1])
    if target is None:
        return None
    if target == LEAST_LIKELY:
        least: Tensor = logits.argmin(1)
        return least.clone()
    if not isinstance(target, int) or not 0 <= target < logits.shape[1]:
        raise UserError(
            f"target {target}: expected {LEAST_LIKELY} or a class from 0 to {logits.shape[1] - 1}"
        )
    return torch.full_like(labels, target)


@dataclass(frozen=True)
class _Way:
    """An attack, by one who knows of a defence or of none, and the defences that it faces."""

    attack: Attack
    attacker: Attacker
    known: Defense
    faced: Sequence[Defense]


def _ways(plan: _Plan) -> Iterator[_Way]:
    for attack in plan.attacks:
        if "static" in plan.attackers or not attack.sees_network:
            yield _Way(attack, "static", UNDEFENDED, plan.defenses)
        if "adaptive" in plan.attackers and attack.sees_network:
            for defense in plan.defenses:
                if defense is not UNDEFENDED or "static" not in plan.attackers:
                    yield _Way(attack, "adaptive", defense, [defense])


def _sees_gates(judged: Judged, attack: Attack) -> bool:
    return judged.decides and attack.sees_network


@dataclass(frozen=True)
class _BatchAttack:
    """All that is done to one batch of one network."""

    name: str
    judged: Judged
    batch: _Batch
    plan: _Plan

    def outcomes(self, clean: Mapping[Defense, _Outcome]) -> Iterator[tuple[Case, _Outcome]]:
        """Yield what became of the images in each case."""
        for way in _ways(self.plan):
            sees_gates = _sees_gates(self.judged, way.attack)
            asked = self.plan.gate_gradients if sees_gates else (None,)
            found: dict[Case, _Outcome] = {}
            for gradient in computed(self.plan.gate_gradients) if sees_gates else (None,):
                found |= self._under(way, gradient, clean)
                self.plan.progress(len(self.batch.labels))
            for case in list(found) if "worst" in asked else ():
                if case.gate_gradient == "frozen":
                    seen = replace(case, gate_gradient="straight-through")
                    both = replace(case, gate_gradient="worst")
                    found[both] = found[seen].worst(found[case])
            yield from ((case, one) for case, one in found.items() if case.gate_gradient in asked)

    def _under(
        self, way: _Way, gradient: GateGradient | None, clean: Mapping[Defense, _Outcome]
    ) -> dict[Case, _Outcome]:
        found = {}
        for epsilon, moved in self._moved(way, gradient):
            if epsilon:
                case = self._case(way, gradient, way.known, epsilon)
                batch = self.batch
                self.plan.watch(Attacked(case, batch.first, batch.pixels, moved, batch.labels))
            for defense in way.faced:
                found[self._case(way, gradient, defense, epsilon)] = (
                    _judge(self.judged, self.batch, moved, defense) if epsilon else clean[defense]
                )
        return found

    def _case(
        self, way: _Way, gradient: GateGradient | None, defense: Defense, epsilon: float
    ) -> Case:
        return Case(
            self.name,
            way.attack.name,
            way.attack.ball.norm,
            way.attack.steps,
            gradient,
            defense.name,
            defense.quality,
            None if defense is UNDEFENDED else way.attacker,
            epsilon,
        )

    def _moved(self, way: _Way, gradient: GateGradient | None) -> Iterator[tuple[float, Tensor]]:
        """Yield each epsilon with what the attack made of the images; 0 with the images."""
        network, batch, plan = self.judged.network, self.batch, self.plan
        seen = network if way.known is UNDEFENDED else Defended(network, way.known)
        above = [epsilon for epsilon in plan.epsilons if epsilon]
        wanted = batch.labels if batch.aims is None else batch.aims
        held = frozen_gates(seen, batch.pixels) if gradient == "frozen" else nullcontext()
        with held:
            found = way.attack.moved(
                seen, batch.pixels, wanted, above, seed=plan.seed + batch.first
            )
        stays = batch.stays.view(-1, 1, 1, 1)
        moved = dict(zip(above, found, strict=True))
        for epsilon in plan.epsilons:
            pixels = moved.get(epsilon, batch.pixels)
            if epsilon and plan.is_eight_bit:
                pixels = way.attack.ball.rounded(batch.pixels, pixels, epsilon)
            yield epsilon, torch.where(stays, batch.pixels, pixels)


def _judge(judged: Judged, batch: _Batch, pixels: Tensor, defense: Defense) -> _Outcome:
    with torch.inference_mode(), recorded_decisions(judged.network) as decisions:
        answers = judged.network(defense.apply(pixels)).argmax(1)
        made = [decision.scale > 0 for decision in decisions.values()]
    none = torch.zeros(len(answers), 0, dtype=torch.bool)
    executed = torch.stack(made, 1).cpu() if made else none
    right = answers == batch.labels
    hit = torch.zeros_like(right) if batch.aims is None else (answers == batch.aims) & ~batch.stays
    return _Outcome(right.cpu(), hit.cpu(), executed)


def _count(tally: Tally, judged: Judged, batch: _Batch, outcome: _Outcome, clean: _Outcome) -> None:
    tally.right.append(outcome.right.numpy())
    if batch.aims is not None:
        tally.hits += int(outcome.hit.sum())
        tally.aimed += int((~batch.stays).sum())
    executed = outcome.executed.numpy()
    tally.gflops += float(judged.flops.executed(executed, judged.policy).sum())
    same = (outcome.executed == clean.executed).numpy()
    tally.executed = _added(tally.executed, batch.labels, executed)
    tally.agreeing = _added(tally.agreeing, batch.labels, same)


def _added(
    counts: npt.NDArray[np.int64] | None, labels: Tensor, flags: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Add flags ``(N, gates)`` to counts ``(classes, gates)``, which grow with the labels seen."""
    classes = labels.cpu().numpy()
    size = max(int(classes.max()) + 1, 0 if counts is None else len(counts))
    grown = np.zeros((size, flags.shape[1]), np.int64)
    if counts is not None:
        grown[: len(counts)] = counts
    np.add.at(grown, classes, flags)
    return grown


def pixel_batches(
    loader: Iterable[tuple[Tensor, Tensor]], mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader that normalises as pixels in 0..1.

    Args:
        loader: Of ``(images, labels)``.
        mean: What it subtracts from each channel.
        std: What it divides each by.

    Example:
        >>> images = (torch.tensor([[[[0.75]]]]) - 0.5) / 0.25
        >>> [(pixels, labels)] = pixel_batches([(images, torch.tensor([3]))], [0.5], [0.25])
        >>> pixels.item()
        0.75
    """
    for images, labels in loader:
        shift, scale = (torch.tensor(part).to(images).view(-1, 1, 1) for part in (mean, std))
        yield (images * scale + shift).clamp(0, 1), labels
