"""Defences: what is done to an image before the network sees it."""

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aigtool.errors import UserError


def jpeg(pixels: Tensor, *, quality: int = 75) -> Tensor:
    """Encode images as JPEG and decode them again, as the paper's defence does.

    Args:
        pixels: ``(N, 3, H, W)`` in 0..1; rounded to 8 bits, as the encoder wants.
        quality: Of the encoder, 1..100.

    Returns:
        ``(N, 3, H, W)`` in 0..1, on the device and in the type of ``pixels``.

    Raises:
        UserError: ``quality`` is out of range.

    Example:
        >>> grey = torch.full((1, 3, 8, 8), 0.5)
        >>> (jpeg(grey) - grey).abs().max().item() < 1 / 255
        True
    """
    check_quality(quality)
    array = (pixels.detach().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = np.stack([_round_trip(image, quality) for image in array])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(pixels) / 255


def check_quality(quality: int) -> int:
    """Return a JPEG quality if it is from 1 to 100.

    Raises:
        UserError: It is not.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"JPEG quality {quality}: expected a whole number from 1 to 100")
    return quality


def _round_trip(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
