"""Defences: what is done to an image before the network sees it."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, features
from torch import Tensor, nn

from aigtool.errors import UserError

SUBSAMPLING = "4:2:0"
"""Of a JPEG's colours: one for four pixels, as most encoders do unasked."""


@dataclass(frozen=True)
class Defense:
    """What is done to images before a network sees them.

    Attributes:
        name: What rows call it.
        apply: Pixels ``(N, C, H, W)`` in 0..1 to such pixels.
        quality: Of a JPEG encoder, if it is one.
        is_differentiable: Whether ``apply`` has a gradient of its own, which an attacker who knows
            of the defence takes; else it is taken for one that changes nothing.

    Example:
        >>> halved = Defense("halved", lambda pixels: pixels / 2)
        >>> halved.apply(torch.ones(1, 1, 1, 1)).item()
        0.5
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    quality: int | None = None
    is_differentiable: bool = False


UNDEFENDED = Defense("none", lambda pixels: pixels)
"""The image as it is."""


def jpeg_defense(quality: int = 75) -> Defense:
    """Return JPEG compression as a defence (Dziugaite et al., 2016), as in the paper.

    Raises:
        UserError: ``quality`` is out of range.
    """
    check_quality(quality)
    return Defense("jpeg", lambda pixels: jpeg(pixels, quality=quality), quality)


class Defended(nn.Module):
    """A defended network as one sees it who knows of the defence.

    Where that has no gradient, the gradient flows through it as if it changed nothing: backward
    pass differentiable approximation (Athalye et al., ICML 2018, section 4.1).

    Args:
        network: Takes pixels.
        defense: Before it.

    Example:
        >>> network = Defended(nn.Flatten(), Defense("signs", torch.sign))
        >>> pixels = torch.full((1, 1, 1, 1), 0.25, requires_grad=True)
        >>> network(pixels).sum().backward()
        >>> network(pixels).item(), pixels.grad.item()
        (1.0, 1.0)
    """

    def __init__(self, network: nn.Module, defense: Defense) -> None:
        super().__init__()
        self.network = network
        self.defense = defense

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``(N, C, H, W)`` in 0..1 to the network's output."""
        defended: Tensor
        if self.defense.is_differentiable:
            defended = self.defense.apply(pixels)
        else:
            defended = _PassedBack.apply(pixels, self.defense)
        output: Tensor = self.network(defended)
        return output


class _PassedBack(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, pixels: Tensor, defense: Defense) -> Tensor:
        defended = defense.apply(pixels)
        if defended.shape != pixels.shape:
            raise UserError(
                f"defence {defense.name} makes {tuple(defended.shape)} of {tuple(pixels.shape)}: "
                "one that is not differentiable must keep the size, for a gradient to pass it"
            )
        return defended

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def jpeg(pixels: Tensor, *, quality: int = 75) -> Tensor:
    """Encode images as JPEG and decode them again, as the paper's defence does.

    Args:
        pixels: ``(N, C, H, W)`` in 0..1, C being 3 or 1; rounded to 8 bits, as the encoder wants.
        quality: Of the encoder, 1..100. Colours are subsampled 4:2:0.

    Returns:
        ``(N, C, H, W)`` in 0..1, on the device and in the type of ``pixels``.

    Raises:
        UserError: ``quality`` is out of range.

    Example:
        >>> grey = torch.full((1, 3, 8, 8), 0.5)
        >>> (jpeg(grey) - grey).abs().max().item() < 1 / 255
        True
    """
    check_quality(quality)
    decoded = np.stack([_round_trip(image, quality) for image in as_images(pixels)])
    shape = pixels.shape[0], *pixels.shape[2:], pixels.shape[1]
    return torch.from_numpy(decoded.reshape(shape)).permute(0, 3, 1, 2).to(pixels) / 255


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Return pixels ``(N, C, H, W)`` in 0..1, C being 3 or 1, as images of 8 bits.

    Example:
        >>> [image] = as_images(torch.ones(1, 1, 2, 3))
        >>> image.mode, image.size
        ('L', (3, 2))
    """
    array = (255 * pixels.detach()).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in array]


def jpeg_encoder() -> str:
    """Return what encodes, for records.

    Example:
        >>> jpeg_encoder().startswith("Pillow ")
        True
    """
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {features.version('pil')}, {library} {version}"


def check_quality(quality: int) -> int:
    """Return a JPEG quality if it is from 1 to 100.

    Raises:
        UserError: It is not.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"JPEG quality {quality}: expected a whole number from 1 to 100")
    return quality


def _round_trip(image: Image.Image, quality: int) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLING)
    return np.asarray(Image.open(buffer))
