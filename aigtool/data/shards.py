"""WebDataset's shards, read in any order: a tar file has its members at known places.

https://github.com/webdataset/webdataset: an image and its label are members of one name, such as
``00017.jpg`` and ``00017.cls``, the latter a number in digits.
"""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from aigtool.data.decoding import decode_image
from aigtool.errors import UserError

_INFO = ("_info.json", "info.json")
"""timm's: which shards a split has."""
_LABEL = ".cls"


@dataclass(frozen=True)
class Shards:
    """Images of some shards, by index.

    Attributes:
        root: The folder.
        names: The shards' names in it, and in these those of images.
        places: ``(N, 4)``, of each image its shard, its name, its first byte and its length.
        labels: Each image's.
    """

    root: str
    names: tuple[list[str], list[str]]
    places: npt.NDArray[np.int64]
    labels: list[int]

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return image and label."""
        shard, _, start, length = self.places[index].tolist()
        with (Path(self.root) / self.names[0][shard]).open("rb") as file:
            file.seek(start)
            content = io.BytesIO(file.read(length))
        return decode_image(content, f"{self.root}/{self.filename(index)}"), self.labels[index]

    def filename(self, index: int) -> str:
        """Return the shard, and the name in it."""
        shard, name, *_ = self.places[index].tolist()
        return f"{self.names[0][shard]}/{self.names[1][name]}"


def find_shards(root: str, split_names: Collection[str]) -> list[str]:
    """Return the names of a split's shards.

    They are those that timm's ``_info.json`` names, or else those with the split in their names, a
    word of its own, as in ``imagenet1k-train-0042.tar``.

    Args:
        root: The folder that they are in.
        split_names: What the split may be called.

    Raises:
        UserError: There is no such folder, or its ``_info.json`` says something else.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"data folder {root}: no such folder; expected one with shards, .tar files")
    for info in (folder / name for name in _INFO):
        if info.is_file():
            return _told_shards(info, split_names)
    return sorted(
        path.name
        for path in folder.glob("*.tar")
        if {*re.split(r"[\W_]+", path.stem.lower())} & {*split_names}
    )


def _told_shards(info: Path, split_names: Collection[str]) -> list[str]:
    try:
        splits = json.loads(info.read_text())["splits"]
        called = next((name for name in split_names if name in splits), None)
        return [] if called is None else [str(Path(file)) for file in splits[called]["filenames"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{info} cannot be read ({error!r}): expected timm's splits, each with filenames; mend "
            "it, or take it away to go by the shards' names"
        ) from error


def open_shards(root: str, split_names: Collection[str]) -> Shards:
    """Look through a split's shards for images with a label.

    Args:
        root: The folder that they are in.
        split_names: What the split may be called.

    Raises:
        UserError: There are no such shards, one cannot be read, or they hold no such images.
    """
    shards = find_shards(root, split_names)
    if not shards:
        present = sorted(path.name for path in Path(root).glob("*.tar"))
        raise UserError(
            f"split {next(iter(split_names))!r} has no shards in {root}, which has "
            f"{', '.join(present[:5]) or 'no .tar files'}: expected the split in their names, such "
            "as train-0000.tar"
        )
    found = [
        (shard, *image) for shard, name in enumerate(shards) for image in _images(Path(root) / name)
    ]
    if not found:
        raise UserError(
            f"shard {Path(root) / shards[0]} has no images with a label: expected members such as "
            f"0001.jpg and 0001{_LABEL}"
        )
    names = [name for _, name, *_ in found]
    places = np.array([(s, n, *where) for n, (s, _, *where, _) in enumerate(found)])
    return Shards(root, (shards, names), places, [label for *_, label in found])


def _images(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield of each image with a label its name, first byte, length and label."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                folder, _, last = member.name.rpartition("/")
                stem, dot, suffix = last.partition(".")
                key, suffix = f"{folder}/{stem}", f"{dot}{suffix}".lower()
                if not member.isfile():
                    continue
                if suffix in IMG_EXTENSIONS:
                    images.setdefault(key, member)
                elif suffix == _LABEL:
                    content: Any = members.extractfile(member)
                    labels[key] = _label(content.read(), f"{shard}/{member.name}")
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"shard {shard} cannot be read ({error}): expected a .tar file that is not compressed"
        ) from error
    for key, member in images.items():
        if key in labels:
            yield member.name, member.offset_data, member.size, labels[key]


def _label(content: bytes, name: str) -> int:
    text = content.decode(errors="replace").strip()
    if not text.isdecimal():
        raise UserError(f"label {name} is {text[:20]!r}: expected a class's number in digits")
    return int(text)
