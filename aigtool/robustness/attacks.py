"""Attacks on a network that takes pixels in 0..1."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.conversion import forced_decisions, recorded_decisions
from aigtool.errors import UserError
from aigtool.robustness.balls import Ball, Linf

LINF = Linf()


def fgsm(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    ball: Ball = LINF,
    is_targeted: bool = False,
) -> Tensor:
    """Attack with the fast gradient sign method (Goodfellow et al., ICLR 2015, section 4).

    Args:
        network: Takes pixels (see ``PixelNetwork``), in evaluation mode. Its gates' gradient flows
            straight through, so the attack sees them.
        pixels: ``(N, C, H, W)`` in 0..1.
        labels: ``(N,)``: the right answers, or those to be given if it is targeted.
        epsilon: How far an image may move.
        ball: By which norm that is measured; with ``L2`` it is the fast gradient method.
        is_targeted: Whether the loss is to fall.

    Returns:
        ``(N, C, H, W)``: the pixels moved by ``epsilon`` along the steepest way, clipped to 0..1.

    Raises:
        UserError: ``epsilon`` is out of range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = network[1].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        >>> fgsm(network, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), epsilon=0.25)
        tensor([[[[0.2500, 0.2500],
                  [0.2500, 0.2500]]]])
    """
    direction = ball.steepest(loss_gradient(network, pixels, labels))
    return move(pixels, -direction if is_targeted else direction, epsilon=epsilon, ball=ball)


def pgd(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    ball: Ball = LINF,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 0,
    is_targeted: bool = False,
    seed: int = 0,
) -> Tensor:
    """Attack by projected gradient steps (Madry et al., ICLR 2018, section 2.1).

    Args:
        network: As of ``fgsm``.
        pixels: ``(N, C, H, W)`` in 0..1.
        labels: ``(N,)``: the right answers, or those to be given if it is targeted.
        epsilon: How far an image may move.
        ball: By which norm that is measured.
        steps: How many, each of length ``step_size``.
        step_size: By default 2.5 times ``epsilon`` over ``steps``, so that any point of the ball
            can be reached from any other.
        restarts: Times to begin at a random point of the ball; 0 begins once, at the image itself.
        is_targeted: Whether the loss is to fall.
        seed: Of the random points.

    Returns:
        ``(N, C, H, W)``: of the points that each image came to, one with a wrong answer (with the
        wanted one, if it is targeted), or the one with the highest loss (the lowest).

    Raises:
        UserError: ``epsilon`` is out of range, or there are no steps, or they have no length.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = network[1].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        >>> pixels, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
        >>> pgd(network, pixels, labels, epsilon=0.25, steps=3, step_size=0.1)
        tensor([[[[0.2500, 0.2500],
                  [0.2500, 0.2500]]]])
    """
    ball.check(epsilon)
    if restarts < 0:
        raise UserError(f"restarts {restarts}: expected at least 0")
    length = step_length(epsilon, steps, step_size)
    sign = -1.0 if is_targeted else 1.0

    def ascend(start: Tensor) -> Tensor:
        with frozen_weights(network):
            for _ in range(steps):
                # A step's loss is held until the next is there: were all of its graph let go, the C
                # library would give the memory back and fetch it again, page by page, each step.
                gradient, _loss = _differentiated(network, start, labels)
                moved = start + sign * length * ball.steepest(gradient)
                start = ball.nearest(pixels, moved, epsilon).clamp(0, 1)
        return start

    if not restarts:
        return ascend(pixels)
    generator = torch.Generator(pixels.device).manual_seed(seed)
    best, most = pixels, torch.full((len(pixels),), -torch.inf, device=pixels.device)
    for _ in range(restarts):
        ended = ascend(ball.drawn(pixels, epsilon, generator).clamp(0, 1))
        won = _success(network, ended, labels, is_targeted=is_targeted)
        is_better = won > most
        best = torch.where(is_better.view(-1, *[1] * (pixels.ndim - 1)), ended, best)
        most = torch.where(is_better, won, most)
    return best


def step_length(epsilon: float, steps: int, step_size: float | None = None) -> float:
    """Return how long each of some steps is: by default so that they cross the ball and more.

    Raises:
        UserError: There are no steps, or they have no length.

    Example:
        >>> step_length(0.1, 5), step_length(0.1, 5, 0.01)
        (0.05, 0.01)
    """
    if steps < 1:
        raise UserError(f"steps {steps}: expected at least 1")
    length = 2.5 * epsilon / steps if step_size is None else step_size
    if epsilon and not 0 < length < float("inf"):
        raise UserError(f"step size {length:g}: expected a length above 0")
    return length


@torch.no_grad()
def _success(network: nn.Module, pixels: Tensor, labels: Tensor, *, is_targeted: bool) -> Tensor:
    """Return by how much each attack succeeded, ``(N,)``: infinite where the answer is its own."""
    logits = network(pixels).float()
    loss = F.cross_entropy(logits, labels, reduction="none")
    answers = logits.argmax(1) == labels
    return (-loss if is_targeted else loss).where(answers != is_targeted, torch.inf)


def noise(pixels: Tensor, *, epsilon: float, ball: Ball = LINF, seed: int = 0) -> Tensor:
    """Move images to random points of the ball, which knows nothing of the network: a control.

    Args:
        pixels: ``(N, C, H, W)`` in 0..1.
        epsilon: How far an image may move.
        ball: By which norm that is measured.
        seed: Of the points.

    Raises:
        UserError: ``epsilon`` is out of range.

    Example:
        >>> moved = noise(torch.full((1, 1, 2, 2), 0.5), epsilon=0.25)
        >>> 0 < (moved - 0.5).abs().max().item() <= 0.25
        True
    """
    ball.check(epsilon)
    generator = torch.Generator(pixels.device).manual_seed(seed)
    return ball.drawn(pixels, epsilon, generator).clamp(0, 1)


@contextmanager
def frozen_gates(network: nn.Module, pixels: Tensor) -> Iterator[None]:
    """Hold a network's gates at their decisions on images, so that an attack sees no gate.

    Args:
        network: Takes pixels, in evaluation mode; its gates' policy is one that decides.
        pixels: ``(N, C, H, W)``, of the batch that is run within.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.models.description import InputSpec, PixelNetwork
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20"))
        >>> network = PixelNetwork(network, InputSpec.of(network)).eval()
        >>> pixels, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
        >>> with frozen_gates(network, pixels):
        ...     attacked = fgsm(network, pixels, labels, epsilon=8 / 255)
    """
    with torch.no_grad(), recorded_decisions(network) as decisions:
        network(pixels)
        made = {name: decision.scale > 0 for name, decision in decisions.items()}
    with forced_decisions(network, made):
        yield


def loss_gradient(network: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of cross entropy, summed over the images, by the pixels.

    Args:
        network: Takes pixels, in any precision; the loss is taken in that of the pixels.
        pixels: ``(N, C, H, W)``.
        labels: ``(N,)``.

    Raises:
        UserError: A label is none of the network's outputs.
    """
    with frozen_weights(network):
        return _differentiated(network, pixels, labels)[0]


def _differentiated(network: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient, and the loss with what is left of its graph."""
    pixels = pixels.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = network(pixels)
        check_labels(labels, logits.shape[1])
        loss = F.cross_entropy(logits.to(pixels.dtype), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient, loss


def check_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels that are none of a network's outputs.

    Raises:
        UserError: There is one.
    """
    if (
        len(labels)
        and not 0 <= (least := int(labels.min())) <= (most := int(labels.max())) < outputs
    ):
        raise UserError(
            f"labels from {least} to {most}, the network has {outputs} outputs: expected labels "
            f"from 0 to {outputs - 1}; mend the class map"
        )


@contextmanager
def frozen_weights(network: nn.Module) -> Iterator[None]:
    """Keep nothing for weights' gradients, which nobody wants."""
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


def move(pixels: Tensor, direction: Tensor, *, epsilon: float, ball: Ball = LINF) -> Tensor:
    """Return pixels moved by ``epsilon`` along a direction, clipped to 0..1.

    Raises:
        UserError: ``epsilon`` is out of range.
    """
    return torch.clamp(pixels + ball.check(epsilon) * direction, 0, 1)
