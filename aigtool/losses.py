"""Target-rate losses: they hold execution rates, not images, to a budget."""

from collections.abc import Iterable

import torch
from torch import Tensor

from aigtool.errors import UserError
from aigtool.gates import Decision


def execution_rates(decisions: Iterable[Decision]) -> Tensor:
    """Return each gate's execution rate over a minibatch, ``(gates,)``, with its gradient.

    Raises:
        UserError: There are no decisions.

    Example:
        >>> scale = torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> execution_rates([Decision(scale, scale, "scaled")])
        tensor([0.7500])
    """
    rates = [decision.scale.float().mean() for decision in decisions]
    if not rates:
        raise UserError(
            "no decisions to take rates of: run the network, converted, within recorded_decisions; "
            "one compiled with torch.compile must run there first"
        )
    return torch.stack(rates)


def per_layer_rate_loss(rates: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over gates of (rate - target)^2.

    Veit and Belongie, ECCV 2018, equation 5.

    Args:
        rates: ``(gates,)``, execution rates over a minibatch.
        targets: ``(gates,)``, or a scalar for all gates.

    Example:
        >>> per_layer_rate_loss(torch.tensor([0.5, 1.0]), torch.tensor(0.6))
        tensor(0.0850)
    """
    return (rates - targets).square().mean()


def network_rate_loss(rates: Tensor, target: float) -> Tensor:
    """Return (mean over gates of the rate - target)^2: the network chooses which blocks it keeps.

    Args:
        rates: ``(gates,)``, execution rates over a minibatch.
        target: The wanted mean over gates.

    Example:
        >>> network_rate_loss(torch.tensor([0.5, 1.0]), 0.65)
        tensor(0.0100)
    """
    return (rates.mean() - target).square()
