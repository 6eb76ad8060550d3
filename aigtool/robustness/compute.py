"""Attacks on compute: images that make an adaptive network run all its blocks, or hardly any."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.conversion import named_gates, recorded_decisions
from aigtool.errors import UserError
from aigtool.robustness.attacks import LINF, frozen_weights, step_length
from aigtool.robustness.balls import Ball

Goal = Literal["raise", "lower"]
GOALS: tuple[Goal, ...] = get_args(Goal)

_TEMPERATURE = 2.0
"""Of the probability of a gate's decision: gates far from turning are hardly asked."""
_KEEP = 10.0
"""Weight of an answer that is about to turn, beside gates whose weights' mean is 1."""
_MARGIN = 0.2
"""By how much, in logits, an answer is to stay ahead."""


def compute_attack(
    network: nn.Module,
    pixels: Tensor,
    costs: npt.NDArray[np.float64],
    *,
    epsilon: float,
    goal: Goal = "raise",
    ball: Ball = LINF,
    steps: int = 20,
    step_size: float | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Move images so that blocks run, or are skipped, while the answer stays what it was.

    Projected gradient steps on what gates decide, as slowdown attacks on networks with early exits
    (Hong et al., "DeepSloth", ICLR 2021) and on networks that skip (Haque et al., "ILFO", CVPR
    2020; Pan et al., "GradMDM", 2023) take them: what rises is the sum over gates of the
    probability of the wanted decision, at a temperature, times the multiply-accumulates of the
    block, and a hinge on the margin of the answer's logit keeps the answer.

    Args:
        network: Takes pixels, in evaluation mode, its gates' policy ``argmax``.
        pixels: ``(N, C, H, W)`` in 0..1.
        costs: ``(gates,)``, what each gate's block costs, in the order of ``named_gates``.
        epsilon: How far an image may move.
        goal: ``raise`` what is executed, or ``lower`` it.
        ball: By which norm that is measured.
        steps: How many, each of length ``step_size``.
        step_size: By default 2.5 times ``epsilon`` over ``steps``.
        known: ``(N, C, H, W)``, points of the ball that were found before, such as within a smaller
            one: what is returned is no worse.

    Returns:
        ``(N, C, H, W)``: of the points that each image came to with its answer kept, the one that
        costs most (least); the first is the image itself.

    Raises:
        UserError: ``epsilon`` is out of range, there are no steps or no gates, there is no such
            goal, or costs are of other gates.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.models.description import InputSpec, PixelNetwork
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20"))
        >>> network = PixelNetwork(network, InputSpec.of(network)).eval()
        >>> pixels = torch.rand(2, 3, 32, 32)
        >>> moved = compute_attack(network, pixels, np.ones(9), epsilon=2 / 255, steps=2)
        >>> (moved - pixels).abs().max().item() <= 2 / 255 + 1e-7
        True
    """
    ball.check(epsilon)
    gates = dict(named_gates(network))
    if not gates:
        raise UserError("compute attack: the network has no gates; expected a gated one")
    if goal not in GOALS:
        raise UserError(f"goal {goal!r}: expected {' or '.join(GOALS)}")
    if len(costs) != len(gates):
        raise UserError(f"costs given: {len(costs)}; gates: {len(gates)}; expected one a gate")
    length = step_length(epsilon, steps, step_size)
    sign = 1.0 if goal == "raise" else -1.0
    price = torch.as_tensor(costs, dtype=pixels.dtype, device=pixels.device)
    weights = price / price.mean()
    thresholds = torch.stack([gate.threshold for gate in gates.values()]).to(pixels.dtype)

    def look(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, whether each block is executed, and the gates' margins."""
        with recorded_decisions(network) as decisions:
            logits = network(at).to(pixels.dtype)
        made = [decisions[name] for name in gates]
        margins = torch.stack([one.logit.to(pixels.dtype) for one in made], 1) - thresholds
        return logits, torch.stack([one.scale > 0 for one in made], 1), margins

    best, most = pixels, torch.full((len(pixels),), -torch.inf, device=pixels.device)

    def choose(at: Tensor, logits: Tensor, executed: Tensor) -> None:
        nonlocal best, most
        spent = sign * (executed * price).sum(1)
        spent = spent.where(logits.argmax(1) == answers, -torch.inf)
        is_better = spent > most
        best = torch.where(is_better.view(-1, *[1] * (pixels.ndim - 1)), at, best)
        most = torch.where(is_better, spent, most)

    with torch.no_grad():
        answers = look(pixels)[0].argmax(1)
        if known is not None:
            choose(known, *look(known)[:2])
    at = pixels
    with frozen_weights(network):
        for step in range(steps + 1):
            at = at.detach().requires_grad_(step < steps)
            with torch.enable_grad():
                logits, executed, margins = look(at)
                wanted = (weights * (sign * margins / _TEMPERATURE).sigmoid()).sum(1)
                ahead = _ahead(logits, answers)
                loss = (wanted - _KEEP * F.relu(_MARGIN - ahead)).sum()
            with torch.no_grad():
                choose(at, logits, executed)
                if step < steps:
                    (gradient,) = torch.autograd.grad(loss, at)
                    moved = at + length * ball.steepest(gradient)
                    at = ball.nearest(pixels, moved, epsilon).clamp(0, 1)
    return best.detach()


def _ahead(logits: Tensor, answers: Tensor) -> Tensor:
    """Return by how much each answer's logit is above the next, ``(N,)``."""
    own = logits.gather(1, answers[:, None])
    others = logits.scatter(1, answers[:, None], -torch.inf)
    return (own - others.max(1, keepdim=True).values).squeeze(1)
