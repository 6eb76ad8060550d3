"""How far an attack may go: the balls around an image, by norm."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from aigtool.errors import UserError

_ROUNDING = 1e-4
"""Of a step of 8 bits: what float32 makes of a whole one."""


class Ball(ABC):
    """What is at most ``epsilon`` from an image, in pixels of 0..1.

    Attributes:
        norm: By which that is measured.
    """

    norm: ClassVar[str]

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the step of length 1 along which a loss rises most, ``(N, C, H, W)``.

        Args:
            gradient: Of the loss by the pixels, ``(N, C, H, W)``.
        """

    @abstractmethod
    def nearest(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Return the point of the ball around ``pixels`` that is nearest to ``moved``."""

    @abstractmethod
    def drawn(self, pixels: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return a point of the ball around ``pixels``, each as likely as any other."""

    @abstractmethod
    def lengths(self, way: Tensor) -> Tensor:
        """Return how long each image's way is, ``(N,)``."""

    @abstractmethod
    def rounded(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Return ``moved`` in 8 bits, within the ball and 0..1.

        Args:
            pixels: The images that the ball is around, of 8 bits themselves.
            moved: Points of the ball.
            epsilon: Its size.
        """

    @abstractmethod
    def unbounded(self, pixels: Tensor) -> float:
        """Return an epsilon within which every image becomes grey."""

    @abstractmethod
    def check(self, epsilon: float) -> float:
        """Return ``epsilon`` if it is in range.

        Raises:
            UserError: It is not.
        """


class Linf(Ball):
    """Each pixel by itself.

    Example:
        >>> ball, pixels = Linf(), torch.tensor([[[[0.5, 0.5, 0.5]]]])
        >>> ball.steepest(torch.tensor([[[[2.0, 0.0, -0.1]]]]))
        tensor([[[[ 1.,  0., -1.]]]])
        >>> ball.nearest(pixels, torch.tensor([[[[0.9, 0.6, 0.0]]]]), 0.25)
        tensor([[[[0.7500, 0.6000, 0.2500]]]])
    """

    norm = "linf"

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the gradient's sign."""
        return gradient.sign()

    def nearest(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Clip each pixel."""
        return pixels + torch.clamp(moved - pixels, -epsilon, epsilon)

    def drawn(self, pixels: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Draw each pixel by itself."""
        return pixels + torch.empty_like(pixels).uniform_(-epsilon, epsilon, generator=generator)

    def lengths(self, way: Tensor) -> Tensor:
        """Return the largest change of a pixel."""
        return way.abs().flatten(1).amax(1)

    def rounded(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Round to the nearest, but where that leaves the ball.

        Example:
            >>> pixels, moved = torch.tensor([[[[100 / 255]]]]), torch.tensor([[[[101.6 / 255]]]])
            >>> [round(255 * Linf().rounded(pixels, moved, e / 255).item()) for e in (2.0, 1.6)]
            [102, 101]
        """
        lowest = _steps_up(255 * (pixels - epsilon))
        highest = -_steps_up(-255 * (pixels + epsilon))
        return (255 * moved).round().clamp(lowest, highest).clamp(0, 255) / 255

    def unbounded(self, pixels: Tensor) -> float:  # noqa: ARG002
        """Return the way from black, or white, to grey."""
        return 0.5

    def check(self, epsilon: float) -> float:
        """Return ``epsilon`` if it is from 0 to 1."""
        if 0 <= epsilon <= 1:
            return epsilon
        meant = f", was {epsilon:g}/255 meant" if 1 < epsilon <= 255 else ""
        raise UserError(
            f"epsilon {epsilon:g}{meant}: expected 0 to 1 in pixels of 0..1, such as 8/255"
        )


class L2(Ball):
    """The image as one vector.

    Example:
        >>> ball, pixels = L2(), torch.zeros(1, 1, 1, 2)
        >>> ball.steepest(torch.tensor([[[[3.0, -4.0]]]]))
        tensor([[[[ 0.6000, -0.8000]]]])
        >>> ball.nearest(pixels, torch.tensor([[[[3.0, 4.0]]]]), 0.5)
        tensor([[[[0.3000, 0.4000]]]])
        >>> ball.steepest(pixels)
        tensor([[[[0., 0.]]]])
    """

    norm = "l2"

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the gradient at length 1, or zero where it is zero."""
        return gradient * (1 / _lengths(gradient))

    def nearest(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Shorten the way there."""
        way = moved - pixels
        return pixels + way * torch.clamp(epsilon / _lengths(way), max=1)

    def drawn(self, pixels: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Draw a direction, and a length whose power ``C * H * W`` is uniform."""
        direction = torch.empty_like(pixels).normal_(generator=generator)
        one = pixels.new_empty(len(pixels), *[1] * (pixels.ndim - 1))
        length = one.uniform_(generator=generator) ** (1 / pixels[0].numel())
        return pixels + epsilon * length * self.steepest(direction)

    def lengths(self, way: Tensor) -> Tensor:
        """Return the root of the sum of squares."""
        lengths: Tensor = torch.linalg.vector_norm(way.flatten(1), dim=1)
        return lengths

    def rounded(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        """Round each pixel's change up while there is room, those with the largest rest first.

        Example:
            >>> pixels = torch.full((1, 1, 1, 4), 0.2)
            >>> moved = pixels + torch.tensor([1.4, 0.9, 0.3, 0.0]) / 255
            >>> (255 * L2().rounded(pixels, moved, 1.7 / 255)).round().tolist()
            [[[[52.0, 52.0, 51.0, 51.0]]]]
        """
        start = 255 * pixels
        change = 255 * moved - start
        lower = -_steps_up(-change.abs())
        rest = (change.abs() - lower).flatten(1)
        order = rest.argsort(1, descending=True)
        cost = (2 * lower.flatten(1) + 1).gather(1, order)  # of one more, in squares
        room = (255 * epsilon) ** 2 + _ROUNDING - lower.flatten(1).square().sum(1, keepdim=True)
        is_wanted = rest.gather(1, order) > _ROUNDING
        fits = is_wanted & (cost.cumsum(1) <= room)
        more = torch.zeros_like(rest).scatter(1, order, fits.to(rest)).view_as(change)
        return (start + change.sign() * (lower + more)).round().clamp(0, 255) / 255

    def unbounded(self, pixels: Tensor) -> float:
        """Return the way from a black image, or a white one, to grey."""
        return float(0.5 * pixels[0].numel() ** 0.5)

    def check(self, epsilon: float) -> float:
        """Return ``epsilon`` if it is finite and not negative."""
        if 0 <= epsilon < float("inf"):
            return epsilon
        raise UserError(f"epsilon {epsilon:g}: expected 0 or more, a length in pixels of 0..1")


def _lengths(x: Tensor) -> Tensor:
    """Return each image's length, at least one that can be divided by, ``(N, 1, 1, 1)``."""
    return L2().lengths(x).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))


def _steps_up(x: Tensor) -> Tensor:
    """Return the whole numbers above, a number that is whole but for rounding being its own."""
    return (x - _ROUNDING).ceil()


BALLS: dict[str, Ball] = {ball.norm: ball for ball in (Linf(), L2())}
"""By norm."""
