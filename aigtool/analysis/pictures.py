"""Small pictures of the images that a trace is of, as far as they are still there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_tensor

from aigtool.data.decoding import read_image
from aigtool.data.images import DIGITS, open_images
from aigtool.errors import UserError

THUMBNAIL = 96
"""Pixels that a picture has at most, each way."""

Picture = npt.NDArray[np.uint8]
Key = TypeVar("Key")


def thumbnail(image: Image.Image) -> Picture:
    """Return a square picture of an image, ``(pixels, pixels, 3)``, cut out of its middle.

    Example:
        >>> thumbnail(Image.new("L", (300, 200))).shape
        (96, 96, 3)
    """
    side = min(THUMBNAIL, *image.size)
    picture: Picture = np.asarray(ImageOps.fit(image.convert("RGB"), (side, side)))
    return picture


def read_pictures(
    read: Callable[[Key], Image.Image], keys: Sequence[Key]
) -> tuple[list[Picture | None], str]:
    """Read images one by one, those that are gone too.

    Args:
        read: Reads one.
        keys: Of each.

    Returns:
        Their pictures, None where one is no longer there or cannot be read; and what is to be said
        of those, nothing if there are none.

    Example:
        >>> pictures, gone = read_pictures(image_reader("digits val"), ["digits/00005", "other"])
        >>> [picture is None for picture in pictures], gone
        ([False, True], '1 of 2 pictures is gone: data digits val has no image other')
    """
    pictures: list[Picture | None] = []
    reasons = []
    for key in keys:
        try:
            pictures.append(thumbnail(read(key)))
        except UserError as error:
            pictures.append(None)
            reasons.append(str(error))
    if not reasons:
        return pictures, ""
    count, first = len(reasons), ", the first" if len(reasons) > 1 else ""
    verb = "are" if count > 1 else "is"
    return pictures, f"{count} of {len(keys)} pictures {verb} gone{first}: {reasons[0]}"


def image_reader(data: str) -> Callable[[str], Image.Image]:
    """Return what reads images of a data set by their names.

    Args:
        data: The data set and split, as a trace's ``source`` says them; the names are those of its
            column ``file``.

    Returns:
        A function that raises ``UserError`` where an image is gone.

    Raises:
        UserError: The data set is neither a folder that is there nor ``digits``.

    Example:
        >>> image_reader("digits val")("digits/00005").size
        (32, 32)
    """
    name, _, split = data.rpartition(" ")
    folder = next((Path(part) for part in (data, name) if part and Path(part).is_dir()), None)
    if folder is not None:
        return lambda file: read_image(str(_below(folder, file)))
    if name != DIGITS:
        raise UserError(f"data {data}: no such folder here, from which pictures could be read")
    images = open_images(DIGITS, split, to_tensor)
    places = {images.filename(index): index for index in range(len(images))}

    def read(file: str) -> Image.Image:
        if file not in places:
            raise UserError(f"data {data} has no image {file}")
        return images.source.read(images.indices[places[file]])[0]

    return read


def _below(folder: Path, file: str) -> Path:
    """Return a file of a folder: what a foreign trace names beside it is no image of its data."""
    path = Path(file)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"data {folder} has no image {file}: expected a file in that folder")
    return folder / path
