"""Budgets: how much of itself a network may run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from aigtool.errors import UserError

if TYPE_CHECKING:
    from aigtool.flops import NetworkFlops

Unit = Literal["rate", "flops"]
UNITS: tuple[Unit, ...] = get_args(Unit)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Budget:
    """A share of a network's blocks or of its multiply-accumulates.

    What is spent is linear in the gates' execution rates: ``least + span * weights @ rates``.

    Attributes:
        share: How much may be spent, 0..1.
        unit: ``rate``, the mean execution rate over gates; or ``flops``, executed GFLOPs over those
            of the dense network, gates included.

    Raises:
        UserError: The share is not above 0 and below 1, or there is no such unit.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.zoo import create_network
        >>> flops = count_flops(convert(create_network("cifar_resnet20")), (3, 32, 32))
        >>> budget = Budget(0.6, "flops")
        >>> round(budget.least(flops), 4), round(budget.mean_rate(flops), 4)
        (0.0119, 0.5951)
    """

    share: float
    unit: Unit = "rate"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(f"unit of a budget {self.unit!r}: expected one of {', '.join(UNITS)}")
        if not 0 < self.share < 1:
            raise UserError(f"{self}: expected a number above 0 and below 1, such as 0.6")

    def __str__(self) -> str:
        return f"target {self.unit} {self.share:g}"

    def check(self, flops: "NetworkFlops") -> None:
        """Refuse a budget that closed gates alone overspend.

        Raises:
            UserError: It does; or the network has no gates.
        """
        if not flops.gated_blocks:
            raise UserError(f"{self}: the network has no gates; convert it first")
        if (least := self.least(flops)) >= self.share:
            raise UserError(
                f"{self}: with {len(flops.gated_blocks)} of {len(flops.blocks)} blocks gated the "
                f"lowest that can be reached is {least:.3f}; ask for more, or gate more blocks"
            )

    def least(self, flops: "NetworkFlops") -> float:
        """Return what is spent with every gate closed."""
        if self.unit == "rate":
            return 0.0
        return 1 - self.span(flops) + flops.gate_gflops / flops.gflops_dense

    def span(self, flops: "NetworkFlops") -> float:
        """Return what open gates spend beyond closed ones."""
        if self.unit == "rate":
            return 1.0
        return sum(block.skippable for block in flops.gated_blocks) / flops.gflops_dense

    def weights(self, flops: "NetworkFlops") -> Floats:
        """Return each gate's part of what can be saved, ``(gates,)``; they add up to 1."""
        gated = flops.gated_blocks
        parts = np.array([block.skippable if self.unit == "flops" else 1.0 for block in gated])
        weights: Floats = parts / parts.sum()
        return weights

    def mean_rate(self, flops: "NetworkFlops") -> float:
        """Return the mean execution rate, by ``weights``, at which the budget is just spent."""
        return (self.share - self.least(flops)) / self.span(flops)

    def spent(self, rates: Floats, flops: "NetworkFlops") -> float:
        """Return what gates with these execution rates, ``(gates,)``, spend."""
        return self.least(flops) + self.span(flops) * float(self.weights(flops) @ rates)
