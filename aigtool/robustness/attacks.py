"""Attacks on a network that takes pixels in 0..1."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.errors import UserError


def fgsm(network: nn.Module, pixels: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Attack with the fast gradient sign method (Goodfellow et al., ICLR 2015, section 4).

    Args:
        network: Takes pixels (see ``PixelNetwork``), in evaluation mode. Its gates' gradient flows
            straight through, so the attack sees them.
        pixels: ``(N, C, H, W)`` in 0..1.
        labels: ``(N,)``.
        epsilon: How far each pixel may move, 0..1.

    Returns:
        ``(N, C, H, W)``: the pixels moved by ``epsilon`` along the sign of the loss's gradient,
        then clipped to 0..1.

    Raises:
        UserError: ``epsilon`` is negative or over 1.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = network[1].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        >>> fgsm(network, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), epsilon=0.25)
        tensor([[[[0.2500, 0.2500],
                  [0.2500, 0.2500]]]])
    """
    return move(pixels, loss_gradient(network, pixels, labels).sign(), epsilon=epsilon)


def loss_gradient(network: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of cross entropy, summed over the images, by the pixels."""
    pixels = pixels.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(network(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient


def move(pixels: Tensor, direction: Tensor, *, epsilon: float) -> Tensor:
    """Return pixels moved by ``epsilon`` along a direction, clipped to 0..1.

    Raises:
        UserError: ``epsilon`` is negative or over 1.
    """
    return torch.clamp(pixels + check_epsilon(epsilon) * direction, 0, 1)


def check_epsilon(epsilon: float) -> float:
    """Return ``epsilon`` if it is from 0 to 1.

    Raises:
        UserError: It is not.
    """
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon {epsilon:g}: expected 0 to 1 in pixels of 0..1, such as 8/255")
    return epsilon
