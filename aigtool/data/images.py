"""A data set's name, folder and split to labelled images in pixels 0..1."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from aigtool.data import digits
from aigtool.data.decoding import read_image
from aigtool.data.shards import find_shards, open_shards
from aigtool.errors import UserError

DIGITS = "digits"
_LIBRARIES = ("torch", "hfds", "hfids", "tfds")
_SHARDS = "wds"
_SYNONYMS = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))

Transform = Callable[[Image.Image], Tensor]


class Source(Protocol):
    """Images by index; worker processes get a pickled copy of it."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return image and label."""

    def filename(self, index: int) -> str:
        """Return the file, or the name in the source."""


@dataclass(frozen=True)
class _Memory:
    images: list[Image.Image]
    labels: list[int]
    names: list[str]

    def read(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]

    def filename(self, index: int) -> str:
        return self.names[index]


@dataclass(frozen=True)
class _Files:
    root: str
    samples: list[tuple[str, int]]

    def read(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return read_image(path), label

    def filename(self, index: int) -> str:
        return os.path.relpath(self.samples[index][0], self.root)


@dataclass(frozen=True)
class _Library:
    name: str
    dataset: Any
    order: list[int] | None

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[index]
        return image.convert("RGB"), self.order[label] if self.order else int(label)

    def filename(self, index: int) -> str:
        return f"{self.name}/{index:08d}"


@dataclass
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split; item ``i`` is its pixels ``(3, H, W)`` in 0..1 and its label.

    Attributes:
        name: What was opened, for messages and records.
        split: The split, or ``""`` where the folder has none.
        classes: Class names in the order of the labels, or None where they are not known.
        labels: Each image's label, or None where only reading tells.
        source: Images and labels by index.
        indices: Which images of the source, in order.
        transform: Image to pixels.
        unmapped: Folders whose images are not in it, since a class map does not name them.
    """

    name: str
    split: str
    classes: tuple[str, ...] | None
    labels: Sequence[int] | None
    source: Source
    indices: Sequence[int]
    transform: Transform
    unmapped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source.read(self.indices[index])
        return self.transform(image), label

    def filename(self, index: int) -> str:
        """Return the file (or name in its source) of image ``index``."""
        return self.source.filename(self.indices[index])

    def take(self, indices: Sequence[int], transform: Transform | None = None) -> "ImageSet":
        """Return some of the images, by position here, perhaps with another transform."""
        return replace(
            self,
            indices=[self.indices[index] for index in indices],
            transform=transform or self.transform,
        )

    def check_classes(self, num_classes: int) -> None:
        """Refuse images whose labels are not a network's outputs.

        Raises:
            UserError: The classes are more than the network's outputs, or, where names do not
                match them to outputs, fewer.
        """
        count = len(self.classes or ())
        if self.classes is not None and count != num_classes:
            raise UserError(
                f"data {self.name} has {count} classes, the network has {num_classes} outputs: "
                f"convert the network with --num-classes {count}, or map the folders with "
                "--class-map FILE"
            )
        if self.labels and max(self.labels) >= num_classes:
            raise UserError(
                f"data {self.name} has labels up to {max(self.labels)}, the network has "
                f"{num_classes} outputs: expected labels under that; mend the class map"
            )

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes of which there is no image, where that is known without reading them."""
        if self.labels is None or self.classes is None:
            return ()
        present = {self.labels[index] for index in self.indices}
        return tuple(name for label, name in enumerate(self.classes) if label not in present)

    def limited(self, count: int | None) -> "ImageSet":
        """Return ``count`` images spread evenly over the set, which keeps classes in proportion.

        Raises:
            UserError: ``count`` is less than 1.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise UserError(f"limit {count}: expected a whole number of at least 1")
        return self.take(np.linspace(0, len(self) - 1, count).round().astype(int).tolist())


@dataclass(frozen=True)
class DataSource:
    """Where images come from, before a split is opened.

    Attributes:
        name: A folder, ``digits``, or a timm data set name such as ``torch/cifar10``.
        root: The folder in which a named data set lies or is downloaded to.
        download: Whether a named data set may be downloaded.
        class_map: timm's class map file, folder names to labels.
    """

    name: str
    root: str | None = None
    download: bool = False
    class_map: str | None = None


def has_split(source: DataSource, split: str) -> bool:
    """Tell whether a folder, shards or ``digits`` have a split; other named sets are not asked."""
    if source.name == DIGITS:
        return split in digits.SPLITS
    if _is_shards(source):
        return bool(find_shards(_root(source), _called(split)))
    return _split_folder(Path(source.name), split) is not None


def default_split(source: DataSource) -> str:
    """Return the split to evaluate when none is named: test, val, train, else the folder."""
    if source.name != DIGITS and not Path(source.name).is_dir() and not _is_shards(source):
        return "validation"
    return next((split for split in ("test", "val", "train") if has_split(source, split)), "")


def validation_split(source: DataSource) -> str:
    """Return the split to choose by when none is named: val, or the folder where it has no splits.

    Raises:
        UserError: The data has other splits only, or is a named data set, in many of which what is
            called validation are the test images.

    Example:
        >>> validation_split(DataSource("digits"))
        'val'
    """
    if default_split(source) == "":
        return ""
    if not has_split(source, "val"):
        raise UserError(
            f"data {source.name} has no val/: name with --split what to choose by, which is "
            "neither what the network was trained on nor what it will be judged by"
        )
    return "val"


def open_images(
    source: DataSource | str,
    split: str,
    transform: Transform,
    class_names: tuple[str, ...] | None = None,
) -> ImageSet:
    """Open one split of a data source.

    Args:
        source: A folder with a folder a class, perhaps under ``train/``, ``val/`` or
            ``validation/``, ``test/``; ``digits``; or a timm data set name.
        split: The split; ``""`` reads the folder itself.
        transform: Image to pixels.
        class_names: The network's classes. Folders are matched to them by name.

    Raises:
        UserError: The source, the split or its images are missing, it has one class, or other
            classes than the network.

    Example:
        >>> from torchvision.transforms.functional import to_tensor
        >>> images = open_images("digits", "test", to_tensor)
        >>> pixels, label = images[0]
        >>> len(images), pixels.shape, label
        (360, torch.Size([3, 32, 32]), 1)
    """
    if isinstance(source, str):
        source = DataSource(source)
    if source.name == DIGITS:
        return _open_digits(split, transform, class_names)
    if _is_shards(source):
        return _open_shards(source, split, transform, class_names)
    if source.name.partition("/")[0] in _LIBRARIES and not Path(source.name).is_dir():
        return _open_named(source, split, transform, class_names)
    return _open_folder(source, split, transform, class_names)


def _open_digits(split: str, transform: Transform, class_names: tuple[str, ...] | None) -> ImageSet:
    if split not in digits.SPLITS:
        raise UserError(
            f"split {split!r}: digits has {', '.join(digits.SPLITS)}; choose one with --split"
        )
    _match(digits.CLASSES, class_names, DIGITS)
    images, labels, names = digits.load_split(split)
    return ImageSet(
        DIGITS,
        split,
        digits.CLASSES,
        labels,
        _Memory(images, labels, names),
        range(len(images)),
        transform,
    )


def _open_folder(
    source: DataSource, split: str, transform: Transform, class_names: tuple[str, ...] | None
) -> ImageSet:
    folder = _folder(source.name, split)
    files, positions = find_images_and_targets(str(folder), types=IMG_EXTENSIONS)
    found = sorted(positions, key=positions.__getitem__)
    if not files or "" in found:
        what = "images that are in no class's folder" if files else "no images"
        raise UserError(
            f"data folder {folder} has {what}: expected a folder a class, with images in it"
        )
    if len(found) < 2:
        raise UserError(
            f"data folder {folder} has one class, {found[0]!r}: expected a folder for each of two "
            "or more classes, with images in them"
        )
    if source.class_map is not None:
        class_to_index = _class_map(source.class_map, found, folder)
        classes = class_names
    else:
        classes = class_names or tuple(found)
        _match(found, class_names, str(folder))
        class_to_index = {name: index for index, name in enumerate(classes)}
    samples = [
        (path, class_to_index[found[position]])
        for path, position in files
        if found[position] in class_to_index
    ]
    return ImageSet(
        source.name,
        split,
        classes,
        [label for _, label in samples],
        _Files(source.name, samples),
        range(len(samples)),
        transform,
        tuple(name for name in found if name not in class_to_index),
    )


def _folder(name: str, split: str) -> Path:
    root = Path(name)
    if not name or not root.is_dir():
        raise UserError(
            f"data {name!r}: no such folder; expected a folder with a folder a class, "
            "'digits', or a timm data set name such as torch/cifar10"
        )
    if not split:
        return root
    if (folder := _split_folder(root, split)) is None:
        present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise UserError(
            f"split {split!r} is not in {root}: it has "
            f"{', '.join(present[:12]) or 'no folders'}; choose one with --split"
        )
    return folder


def _split_folder(root: Path, split: str) -> Path | None:
    candidates = (root / name for name in _called(split))
    return next((folder for folder in candidates if folder.is_dir()), None)


def _called(split: str) -> tuple[str, ...]:
    """Return what a split may be called."""
    names = next((group for group in _SYNONYMS if split in group), ())
    return tuple(dict.fromkeys((split, *names)))


def _is_shards(source: DataSource) -> bool:
    return source.name.partition("/")[0] == _SHARDS and not Path(source.name).is_dir()


def _root(source: DataSource) -> str:
    if source.root is None:
        raise UserError(
            f"data set {source.name!r}: say with --data-dir where it lies, or is downloaded to"
        )
    return source.root


def _open_shards(
    source: DataSource, split: str, transform: Transform, class_names: tuple[str, ...] | None
) -> ImageSet:
    shards = open_shards(_root(source), _called(split))
    labels, count = shards.labels, len(shards.labels)
    return ImageSet(source.name, split, class_names, labels, shards, range(count), transform)


def _match(found: Sequence[str], wanted: tuple[str, ...] | None, where: str) -> None:
    if wanted is None or set(found) <= set(wanted):
        return
    unknown = [name for name in found if name not in wanted]
    raise UserError(
        f"{where} has classes that the network has not: {', '.join(unknown[:5])}"
        f"{', ...' * (len(unknown) > 5)}; expected names among {', '.join(wanted[:10])}"
        f"{', ...' * (len(wanted) > 10)}; rename the folders, or map them with --class-map FILE"
    )


def _class_map(file: str, found: Sequence[str], folder: Path) -> dict[str, int]:
    if not Path(file).is_file():
        raise UserError(f"class map {file}: no such file; timm's form is a name a line, in a .txt")
    lines = [line.strip() for line in Path(file).read_text(errors="replace").splitlines()]
    mapping = {name: index for index, name in enumerate(lines) if name}
    if twice := [name for name, times in Counter(lines).items() if name and times > 1]:
        raise UserError(f"class map {file} has {twice[0]!r} twice: expected each name once")
    if not set(mapping) & set(found):
        raise UserError(
            f"class map {file} names none of the folders in {folder}, which are "
            f"{', '.join(found[:5])}: expected their names, one a line"
        )
    return mapping


def _open_named(
    source: DataSource, split: str, transform: Transform, class_names: tuple[str, ...] | None
) -> ImageSet:
    if source.name.startswith("torch/"):
        _root(source)
    try:
        opened = create_dataset(
            source.name, root=source.root, split=split, download=source.download
        )
    except Exception as error:
        raise UserError(
            f"data set {source.name!r}, split {split!r}, cannot be opened: {error}; say where it "
            "lies with --data-dir, or fetch it with --download"
        ) from error
    if isinstance(opened, torch.utils.data.IterableDataset):
        raise UserError(
            f"data set {source.name!r} is a stream without indices: expected one that can be read "
            "in any order; unpack it into a folder a class"
        )
    dataset = cast(Any, opened)
    classes = tuple(map(str, getattr(dataset, "classes", ()))) or None
    if classes is not None:
        _match(classes, class_names, source.name)
    order = list(range(len(classes))) if classes else None
    if classes is not None and class_names is not None:
        order = [class_names.index(name) for name in classes]

    targets = getattr(dataset, "targets", None)
    labels = [order[int(t)] for t in targets] if order and targets is not None else None
    return ImageSet(
        source.name,
        split,
        class_names or classes,
        labels,
        _Library(f"{source.name}/{split}", dataset, order),
        range(len(dataset)),
        transform,
    )
