"""What attacks left of networks: cases, and what became of the images in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from aigtool.flops import NetworkFlops
from aigtool.gates import Policy
from aigtool.models.description import PixelNetwork

GateGradient = Literal["straight-through", "frozen", "worst"]
GATE_GRADIENTS: tuple[GateGradient, ...] = get_args(GateGradient)
Attacker = Literal["static", "adaptive"]
ATTACKERS: tuple[Attacker, ...] = get_args(Attacker)
LEAST_LIKELY = "least-likely"


def computed(gradients: Sequence[GateGradient]) -> Sequence[GateGradient]:
    """Return the gate gradients that attacks are run for: the worst is of the two others.

    Example:
        >>> computed(["worst"]), computed(["frozen"])
        (('straight-through', 'frozen'), ['frozen'])
    """
    return GATE_GRADIENTS[:2] if "worst" in gradients else gradients


@dataclass(frozen=True)
class Judged:
    """A network to attack.

    Attributes:
        network: Takes pixels, in evaluation mode.
        flops: Counts of it.
        policy: Its gate policy; ``open`` stands for the network before gating.
    """

    network: PixelNetwork = field(repr=False)
    flops: NetworkFlops
    policy: Policy

    @property
    def decides(self) -> bool:
        """Whether its gates decide image by image."""
        return self.policy in ("argmax", "sampled") and bool(self.flops.gated_blocks)


@dataclass(frozen=True)
class Case:
    """One network under one attack behind one defence.

    Attributes:
        network: Its name.
        attack: Its name.
        norm: Of the attack's ball.
        steps: Gradients that the attack takes, if it says so.
        gate_gradient: What the attack sees of the gates; None where there is nothing to see.
        defense: Its name, ``none`` for none.
        quality: Of a JPEG encoder.
        attacker: Whether the attack knows of the defence; None where there is none.
        epsilon: How far images may move; 0 is the clean image.
    """

    network: str
    attack: str
    norm: str
    steps: int | None
    gate_gradient: GateGradient | None
    defense: str
    quality: int | None
    attacker: Attacker | None
    epsilon: float


@dataclass
class Tally:
    """What became of the images of a case.

    Attributes:
        right: ``(images,)`` so far, whether each answer is right, batch by batch.
        hits: Answers that are the wanted ones, of ``aimed`` images; of targeted attacks.
        aimed: Images whose label is another than the wanted one.
        executed: ``(classes, gates)``, images of each class that executed each block.
        agreeing: The same of decisions that equal those on the clean image without a defence.
        gflops: Executed, of all images.
    """

    right: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    hits: int = 0
    aimed: int = 0
    executed: npt.NDArray[np.int64] | None = None
    agreeing: npt.NDArray[np.int64] | None = None
    gflops: float = 0.0


@dataclass(frozen=True)
class Attacked:
    """A batch that was attacked, as ``attack_networks`` shows it.

    Attributes:
        case: How; of a static attacker, without a defence.
        first: Position of its first image.
        pixels: ``(N, C, H, W)``, before.
        moved: ``(N, C, H, W)``, after.
        labels: ``(N,)``.
    """

    case: Case
    first: int
    pixels: Tensor
    moved: Tensor
    labels: Tensor


@dataclass
class Robustness:
    """What attacks left of networks, over the same images.

    Attributes:
        networks: As given; the last is what the others are compared with.
        target: What was wanted instead of the right answers: a class, ``least-likely``, or None.
        labels: ``(images,)``.
        clean: ``(images,)`` so far, whether each answer to the clean image is right, by network
            and defence (its name and quality).
        tallies: By case.
    """

    networks: Mapping[str, Judged]
    target: int | str | None = None
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    clean: dict[tuple[str, str, int | None], list[npt.NDArray[np.bool_]]] = field(
        default_factory=dict, repr=False
    )
    tallies: dict[Case, Tally] = field(default_factory=dict, repr=False)
