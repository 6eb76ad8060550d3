"""Calibration: thresholds of gates at which a network keeps to a budget, without training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import nn

from aigtool.budget import Budget, Floats
from aigtool.conversion import gate_policy, named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.flops import NetworkFlops
from aigtool.models.description import PixelNetwork
from aigtool.modes import in_mode

_PASSES = 24
_ENOUGH = 0.001
"""A search ends when this much of the network or less is left of the budget."""
_FINE = 1e-6
"""Or when the shift is known to this many logits."""


@dataclass(frozen=True)
class Calibration:
    """What a search for thresholds found.

    Attributes:
        shift: The logit that was added to every gate's threshold.
        spent: What the network spends of itself with it, in the budget's unit.
        before: What it spends without.
        passes: How often the images were run.
    """

    shift: float
    spent: float
    before: float
    passes: int


def calibrate(
    network: PixelNetwork,
    images: ImageSet,
    budget: Budget,
    flops: NetworkFlops,
    *,
    batch_size: int = 128,
    workers: int = 0,
) -> Calibration:
    """Shift the thresholds of all gates by one logit so that argmax execution meets a budget.

    A gate's logit is its log-odds of executing: one threshold for all asks every gate for the same
    odds, so that the blocks which matter least to an image go first. Each pass over the images
    records the logits and proposes the shift at which they would just spend the budget; since a
    block that now runs or not changes what the next gates see, that is repeated, within the
    brackets of what was tried.

    Args:
        network: Takes pixels; its thresholds are changed in place.
        images: Validation images; those that the network was trained on are too easy for it.
        budget: What may be spent.
        flops: What ``count_flops`` counted for the network.
        batch_size: Images a batch.
        workers: Processes that read images.

    Returns:
        The shift with the most spent within the budget.

    Raises:
        UserError: The budget cannot be met with every gate closed.

    Example:
        >>> from torchvision.transforms.functional import to_tensor
        >>> from aigtool.conversion import convert
        >>> from aigtool.data.images import open_images
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.description import InputSpec
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20"))
        >>> found = calibrate(
        ...     PixelNetwork(network, InputSpec.of(network)),
        ...     open_images("digits", "val", to_tensor),
        ...     Budget(0.6),
        ...     count_flops(network, (3, 32, 32)),
        ... )
        >>> found.spent <= 0.6
        True
    """
    budget.check(flops)
    gates = [gate for _, gate in named_gates(network)]
    start = [gate.threshold.clone() for gate in gates]
    # Tried shifts that spend too much and those that do not: the best lies between them.
    over, within = -np.inf, np.inf
    shift, best = 0.0, (np.inf, budget.least(flops))
    for passes in count(1):
        for gate, threshold in zip(gates, start, strict=True):
            gate.threshold.copy_(threshold + shift)
        margins = _margins(network, images, batch_size, workers)
        spent = budget.spent((margins > 0).mean(axis=0), flops)
        if passes == 1:
            before = spent
        if spent > budget.share:
            over = max(over, shift)
        else:
            within = min(within, shift)
            if spent > best[1] or np.isinf(best[0]):
                best = (shift, spent)
        if passes == _PASSES or 0 <= budget.share - best[1] <= _ENOUGH:
            break
        shift += _step(margins, budget.weights(flops), budget.mean_rate(flops))
        if not over < shift < within:
            shift = (over + within) / 2
        if not np.isfinite(shift) or within - over < _FINE:
            break
    for gate, threshold in zip(gates, start, strict=True):
        gate.threshold.copy_(threshold + best[0])
    return Calibration(*best, before, passes)


def _margins(network: PixelNetwork, images: ImageSet, batch_size: int, workers: int) -> Floats:
    """Return by how much each gate's logit exceeds its threshold, ``(images, gates)``."""
    gates = dict(named_gates(network))
    rows = []
    with (
        torch.inference_mode(),
        in_mode(network, training=False),
        gate_policy(network, "argmax"),
        recorded_decisions(network) as decisions,
    ):
        for pixels, _ in load_batches(images, batch_size=batch_size, workers=workers):
            network(pixels.to(network.mean.device))
            margins = [decisions[name].logit - gate.threshold for name, gate in gates.items()]
            rows.append(torch.stack(margins, dim=1).double().cpu().numpy())
    return np.concatenate(rows)


def _step(margins: Floats, weights: Floats, mean_rate: float) -> float:
    """Return the shift at which the mean execution rate comes nearest ``mean_rate`` from below."""
    order = np.argsort(-margins, axis=None)
    values = margins.ravel()[order]
    rates = np.cumsum(np.broadcast_to(weights, margins.shape).ravel()[order]) / len(margins)
    kept = int(np.searchsorted(rates, mean_rate, side="right"))
    above = values[kept - 1] if kept > 0 else values[0] + 1
    below = values[kept] if kept < len(values) else values[-1] - 1
    return float(above + below) / 2


@contextmanager
def kept_thresholds(network: nn.Module) -> Iterator[None]:
    """Put the gates' thresholds back afterwards."""
    before = [(gate, gate.threshold.clone()) for _, gate in named_gates(network)]
    try:
        yield
    finally:
        for gate, threshold in before:
            gate.threshold.copy_(threshold)
