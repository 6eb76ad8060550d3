"""Attacks with their options, as a report runs them side by side."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from aigtool.robustness.attacks import LINF, loss_gradient, move, noise, pgd
from aigtool.robustness.balls import Ball


class Attack(ABC):
    """Moves images so that a network errs.

    Attributes:
        name: What rows call it.
        ball: By which norm it is held to an epsilon.
        steps: Gradients that it takes, if it says so.
        sees_network: Whether it asks the network for gradients or answers.
        is_targeted: Whether the labels that it gets are those it wants to be given.
    """

    name: str
    ball: Ball
    steps: int | None = None
    sees_network: bool = True
    is_targeted: bool = False

    @abstractmethod
    def moved(
        self,
        network: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        *,
        seed: int = 0,
    ) -> list[Tensor]:
        """Move a batch, once for each epsilon.

        Args:
            network: Takes pixels, in evaluation mode.
            pixels: ``(N, C, H, W)`` in 0..1.
            labels: ``(N,)``.
            epsilons: How far an image may move, above 0.
            seed: Of all that the attack draws.

        Returns:
            ``(N, C, H, W)`` in 0..1 for each epsilon.
        """


@dataclass(frozen=True)
class Fgsm(Attack):
    """The fast gradient sign method: see ``fgsm``. One gradient serves all epsilons."""

    ball: Ball = LINF
    is_targeted: bool = False
    name = "fgsm"
    steps = 1

    def moved(
        self,
        network: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        *,
        seed: int = 0,  # noqa: ARG002
    ) -> list[Tensor]:
        """Move along the steepest way."""
        direction = self.ball.steepest(loss_gradient(network, pixels, labels))
        way = -direction if self.is_targeted else direction
        return [move(pixels, way, epsilon=epsilon, ball=self.ball) for epsilon in epsilons]


@dataclass(frozen=True)
class Pgd(Attack):
    """Projected gradient steps: see ``pgd``."""

    ball: Ball = LINF
    steps: int = 20
    step_size: float | None = None
    restarts: int = 0
    is_targeted: bool = False
    name = "pgd"

    def moved(
        self,
        network: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        *,
        seed: int = 0,
    ) -> list[Tensor]:
        """Move step by step."""
        return [
            pgd(
                network,
                pixels,
                labels,
                epsilon=epsilon,
                ball=self.ball,
                steps=self.steps,
                step_size=self.step_size,
                restarts=self.restarts,
                is_targeted=self.is_targeted,
                seed=seed,
            )
            for epsilon in epsilons
        ]


@dataclass(frozen=True)
class Noise(Attack):
    """A random point of the ball: see ``noise``."""

    ball: Ball = LINF
    name = "noise"
    sees_network = False

    def moved(
        self,
        network: nn.Module,  # noqa: ARG002
        pixels: Tensor,
        labels: Tensor,  # noqa: ARG002
        epsilons: Sequence[float],
        *,
        seed: int = 0,
    ) -> list[Tensor]:
        """Move anywhere."""
        return [noise(pixels, epsilon=e, ball=self.ball, seed=seed) for e in epsilons]
