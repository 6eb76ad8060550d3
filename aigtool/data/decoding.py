"""Image files to images in colour."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from aigtool.errors import UserError


def read_image(path: str) -> Image.Image:
    """Read an image file, in colour.

    Raises:
        UserError: It cannot be read.
    """
    if Path(path).is_dir() or not Path(path).exists():
        what = "a folder" if Path(path).is_dir() else "no such file"
        raise UserError(f"image {path} cannot be read ({what}): expected an image file")
    return decode_image(path, path)


def decode_image(file: str | BinaryIO, name: str) -> Image.Image:
    """Return an image in colour.

    Args:
        file: Its path, or what is to be read for its bytes.
        name: What to call it.

    Raises:
        UserError: It cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return _in_colour(image)
    # Of a damaged file, decoders raise what they like.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {name} cannot be read ({error}): mend it, or leave it out"
        ) from error


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would take all above 255 for white.
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its numbers, of mode {image.mode}, have no largest: expected 8 or 16 bits"
        )
    return image.convert("RGB")
