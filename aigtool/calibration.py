"""Calibration: thresholds of gates at which a network keeps to a budget, without training."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
_STEP = 0.02
"""What one gate is asked to spend more or less at once; a quarter of what there is, if more."""
_CLEAR = 0.01
"""Logits from a threshold at which a decision is safe from another machine's rounding."""
_NEAR = 0.004
"""What is left of the budget when no gate is asked for more."""
_ROUNDING = 1e-9
"""What is spent beyond the budget by no more is the rounding of a sum."""


@dataclass(frozen=True)
class Calibration:
    """What a search for thresholds found.

    Attributes:
        shifts: The logit that was added to each gate's threshold.
        spent: What the network spends of itself with them, in the budget's unit.
        before: What it spends without.
        rates: Each gate's execution rate without.
        passes: How often the images were run.
    """

    shifts: tuple[float, ...]
    spent: float
    before: float
    rates: tuple[float, ...]
    passes: int


class _Pass(NamedTuple):
    """What a pass over the images showed.

    Attributes:
        margins: By how much each gate's logit exceeds its threshold, ``(images, gates)``.
        spent: In the budget's unit.
        loss: Mean cross entropy.
    """

    margins: Floats
    spent: float
    loss: float


def calibrate(
    network: PixelNetwork,
    images: ImageSet,
    budget: Budget,
    flops: NetworkFlops,
    *,
    quick: bool = False,
    batch_size: int = 128,
    workers: int | None = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Calibration:
    """Shift the thresholds of gates so that argmax execution meets a budget.

    While the network spends too much, each gate in turn is tried with a threshold that saves a
    fiftieth of the network, or a quarter of what is to be saved, and the one stays that costs the
    least loss for what it saves; while much of the budget is left, the one that gains the most.
    Since a block that runs or not changes what the next gates see, each trial is a pass over the
    images. At last thresholds are moved clear of the logits next to them: no decision changes, and
    none is left to the rounding of another machine.

    Args:
        network: Takes pixels; its thresholds are changed in place.
        images: Validation images; those that the network was trained on are too easy for it.
        budget: What may be spent.
        flops: What ``count_flops`` counted for the network.
        quick: Whether to add one logit to all thresholds instead: a few passes instead of one a
            gate and a fiftieth. All gates are then asked for the same odds, whatever their
            blocks are worth.
        batch_size: Images a batch.
        workers: Processes that read images, as of ``load_batches``.
        progress: Called before each trial of a gate with how much of the way to the budget is
            done by then, 0..1.

    Returns:
        The shifts with the most spent within the budget that were found.

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
        ...     quick=True,
        ... )
        >>> found.spent <= 0.6
        True
    """
    budget.check(flops)
    batches = partial(load_batches, images, batch_size=batch_size, workers=workers)
    search = _Search(network, batches, budget, flops)
    first = search.run(search.zero)
    shifts, last = search.zero, first
    if not quick:
        shifts, last = search.gate_by_gate(first, progress)
    spent = last.spent
    if quick or not search.is_met(spent):
        shifts, spent = search.together(shifts, last)
    shifts = shifts + [clearing_move(margins) for margins in search.run(shifts).margins.T]
    search.set(shifts)
    rates = (first.margins > 0).mean(axis=0)
    spent = min(spent, budget.share)
    return Calibration(
        tuple(shifts.tolist()), spent, first.spent, tuple(rates.tolist()), search.passes
    )


def calibrate_each(
    network: PixelNetwork,
    images: ImageSet,
    rates: Sequence[float],
    *,
    batch_size: int = 128,
    workers: int | None = 0,
) -> Calibration:
    """Shift each gate's threshold so that argmax execution has a rate of its own.

    What a gate decides changes what later ones see: passes over the images go on until none asks
    for another threshold, each of which settles one more gate at least.

    Args:
        network: Takes pixels; its thresholds are changed in place.
        images: Validation images.
        rates: A rate a gate, 0..1; on these images it executes as many of them, or the next less.
        batch_size: Images a batch.
        workers: Processes that read images, as of ``load_batches``.

    Returns:
        The shifts; what is spent is the mean rate over gates.

    Raises:
        ValueError: There are not as many rates as gates.

    Example:
        >>> from torchvision.transforms.functional import to_tensor
        >>> from aigtool.conversion import convert
        >>> from aigtool.data.images import open_images
        >>> from aigtool.models.description import InputSpec
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20"))
        >>> images = open_images("digits", "val", to_tensor).limited(20)
        >>> pixels = PixelNetwork(network, InputSpec.of(network))
        >>> found = calibrate_each(pixels, images, [1.0] * 8 + [0.5])
        >>> round(found.before, 2), 8 / 9 <= found.spent <= 8.5 / 9
        (1.0, True)
    """
    thresholds = _Thresholds(
        network, partial(load_batches, images, batch_size=batch_size, workers=workers)
    )
    shifts = thresholds.zero
    first = margins = thresholds.look(shifts)[0]
    for _ in thresholds.gates:
        asked = zip(margins.T, rates, strict=True)
        steps = np.array([_step(of_gate[:, None], np.ones(1), rate) for of_gate, rate in asked])
        if ((margins > steps) == (margins > 0)).all():
            break
        shifts = shifts + steps
        margins = thresholds.look(shifts)[0]
    shifts = shifts + [clearing_move(of_gate) for of_gate in margins.T]
    thresholds.set(shifts)
    before, after = ((each > 0).mean(axis=0) for each in (first, margins))
    return Calibration(
        tuple(shifts.tolist()),
        float(after.mean()),
        float(before.mean()),
        tuple(before.tolist()),
        thresholds.passes,
    )


class _Thresholds:
    """Thresholds of a network, and what its gates and it say with them."""

    def __init__(
        self, network: PixelNetwork, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    ) -> None:
        self.network = network
        self.gates = dict(named_gates(network))
        self.start = [gate.threshold.clone() for gate in self.gates.values()]
        self.zero = np.zeros(len(self.start))
        self.batches = batches
        self.passes = 0

    def set(self, shifts: Floats) -> None:
        """Add to the thresholds as they were."""
        for gate, threshold, shift in zip(self.gates.values(), self.start, shifts, strict=True):
            gate.threshold.copy_(threshold + shift)

    def look(self, shifts: Floats) -> tuple[Floats, float]:
        """Run the images with shifted thresholds; return what ``_Pass`` calls margins and loss."""
        self.set(shifts)
        self.passes += 1
        device = self.network.mean.device
        rows, losses = [], []
        with (
            torch.inference_mode(),
            in_mode(self.network, training=False),
            gate_policy(self.network, "argmax"),
            recorded_decisions(self.network) as decisions,
        ):
            for pixels, labels in self.batches():
                logits = self.network(pixels.to(device))
                losses.append(F.cross_entropy(logits, labels.to(device), reduction="sum").item())
                made = [decisions[name].logit - g.threshold for name, g in self.gates.items()]
                rows.append(torch.stack(made, dim=1).cpu().double().numpy())
        margins = np.concatenate(rows)
        return margins, sum(losses) / len(margins)


class _Search(_Thresholds):
    """Thresholds, and what of a budget is spent with them."""

    def __init__(
        self,
        network: PixelNetwork,
        batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        budget: Budget,
        flops: NetworkFlops,
    ) -> None:
        super().__init__(network, batches)
        self.budget, self.flops = budget, flops
        self.most = budget.share + _ROUNDING
        self.weights = budget.span(flops) * budget.weights(flops)

    def run(self, shifts: Floats) -> _Pass:
        """Run the images with shifted thresholds."""
        margins, loss = self.look(shifts)
        return _Pass(margins, self.budget.spent((margins > 0).mean(axis=0), self.flops), loss)

    def gate_by_gate(self, now: _Pass, progress: Callable[[float], None]) -> tuple[Floats, _Pass]:
        """Change one threshold at a time, where it costs the least loss or gains the most.

        Where no change leads nearer to the budget from above, the one is taken that leads into it
        and leaves the least of it.
        """
        shifts, share = self.zero, self.budget.share
        way, done = abs(now.spent - share), 0.0
        while not self.is_met(now.spent):
            excess = now.spent - share
            step = max(_STEP, abs(excess) / 4)
            wanted = float(np.clip(excess, -step, step))
            best: tuple[tuple[bool, float], Floats, _Pass] | None = None
            for gate, weight in enumerate(self.weights):
                left = abs(excess) - abs(wanted) * gate / len(self.weights)
                done = max(done, 1 - left / way)
                progress(done)
                move = threshold_move(now.margins[:, gate], wanted / weight)
                if move == 0:
                    continue
                tried = shifts.copy()
                tried[gate] += move
                then = self.run(tried)
                saved = now.spent - then.spent
                is_far = not self._is_nearer(now.spent, then.spent)
                if saved * wanted <= 0 or (is_far and not then.spent <= self.most < now.spent):
                    continue
                cost = -then.spent if is_far else (then.loss - now.loss) / abs(saved)
                if best is None or (is_far, cost) < best[0]:
                    best = ((is_far, cost), tried, then)
            if best is None:
                break
            _, shifts, now = best
        return shifts, now

    def is_met(self, spent: float) -> bool:
        """Whether the budget is kept to, and next to nothing of it left."""
        return self.budget.share - _NEAR <= spent <= self.most

    def _is_nearer(self, now: float, then: float) -> bool:
        share = self.budget.share
        return abs(then - share) < abs(now - share) and (now > self.most or then <= self.most)

    def together(self, base: Floats, first: _Pass | None = None) -> tuple[Floats, float]:
        """Add one logit to all thresholds: that with the most spent within the budget.

        A gate's logit is its log-odds of executing. Each pass proposes the shift at which its
        logits would just spend the budget, within the brackets of what was tried. ``first`` is
        what a pass with ``base`` showed, if there was one.
        """
        budget, flops = self.budget, self.flops
        # The best shift is at least the one and less than the other: from a shift that was tried to
        # the first logit on the way, decisions stay what they are.
        over, within = -np.inf, np.inf
        shift, best = 0.0, (np.inf, budget.least(flops))
        for tried in count(1):
            margins, spent, _ = first or self.run(base + shift)
            first = None
            if spent > self.most:
                over = max(over, shift + margins[margins > 0].min(initial=np.inf))
            else:
                within = min(within, shift + margins[margins <= 0].max(initial=-np.inf))
                if spent > best[1] or np.isinf(best[0]):
                    best = (shift, spent)
            is_found = np.isfinite(best[0]) and budget.share - best[1] <= _ENOUGH
            if tried == _PASSES or is_found:
                break
            shift += _step(margins, budget.weights(flops), budget.mean_rate(flops))
            if not over <= shift < within:
                shift = (over + within) / 2
            if not np.isfinite(shift) or within - over < _FINE:
                break
        return base + best[0], best[1]


def threshold_move(margins: Floats, less: float) -> float:
    """Return what to add to a threshold so that a gate executes that much less, or all it can.

    Args:
        margins: By how much each image's logit exceeds the threshold.
        less: The share of images to execute no more; negative for those to execute as well.

    Example:
        >>> margins = np.array([-2.0, -1.0, 1.0, 2.0, 4.0])
        >>> threshold_move(margins, 0.4), threshold_move(margins, -0.2)
        (3.0, -1.5)
        >>> threshold_move(margins, 1.0), threshold_move(margins[:2], 0.5)
        (5.0, 0.0)
    """
    wanted = max(1, round(abs(less) * len(margins)))
    ordered = np.sort(margins[margins > 0] if less > 0 else -margins[margins <= 0])
    if not len(ordered):
        return 0.0
    last = ordered[min(wanted, len(ordered)) - 1]
    further = ordered[ordered > last]
    move = (last + further[0]) / 2 if len(further) else last + 1
    return float(move if less > 0 else -move)


def clearing_move(margins: Floats) -> float:
    """Return what to add to a threshold so that no logit is so near it that rounding decides.

    Args:
        margins: By how much each image's logit exceeds the threshold. None changes its sign.

    Returns:
        What leads to the middle of the gap between logits that it lies in, or as far as is safe.

    Example:
        >>> margins = np.array([-2.0, 0.0, 3.0])
        >>> clearing_move(margins), round(clearing_move(margins + 0.001), 3)
        (0.01, -0.009)
        >>> clearing_move(margins + 9), clearing_move(np.array([-0.001, 0.002]))
        (0.0, 0.0005)
    """
    below = margins[margins <= 0].max(initial=-np.inf)
    above = margins[margins > 0].min(initial=np.inf)
    if above - below > 2 * _CLEAR:
        return float(max(0.0, below + _CLEAR) - max(0.0, _CLEAR - above))
    return float(below + above) / 2


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
