"""Images that a trace is of, small and inside the page, and the blocks that each executed."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from torchvision.transforms.functional import to_tensor

from aigtool.analysis.image_plots import drawn_classes, thumbnail
from aigtool.analysis.rates import stage_of
from aigtool.data.images import DIGITS, open_images, read_image
from aigtool.errors import UserError
from aigtool.output import records
from aigtool.report.gates import GateTables

ROW = 18
"""Blocks of a stage drawn side by side."""


@dataclass(frozen=True)
class Shown:
    """An image with its inference graph.

    Attributes:
        picture: A ``data:`` address, or None where the image is gone.
        graph: Its blocks.
        caption: What it took.
        right: Whether the answer was.
        told: All that is known of it.
    """

    picture: str | None
    graph: "Graph"
    caption: str
    right: bool
    told: str


@dataclass(frozen=True)
class Graph:
    """Blocks as squares, a stage a row, in a box of ``width`` by ``height``.

    Attributes:
        executed: Path of those executed.
        skipped: Path of those skipped.
    """

    width: int
    height: int
    executed: str
    skipped: str


@dataclass(frozen=True)
class Album:
    """The easiest and the hardest images of each class.

    Attributes:
        classes: By class, the images that took the fewest and the most blocks.
        more: Classes that there was no room for.
        gone: Why there are no pictures, if so.
    """

    classes: dict[str, dict[str, list[Shown]]]
    more: int
    gone: str


def album(tables: GateTables) -> Album:
    """Return the images of the classes that there is room for, with pictures if they are there."""
    names = drawn_classes(tables.extremes)
    rows = records(tables.extremes[tables.extremes["class"].isin(names)])
    gates = tables.gates["gate"].tolist()
    try:
        pictures: list[str | None] = [
            *read_pictures(tables.found["data"], [r["file"] for r in rows])
        ]
        gone = ""
    except UserError as error:
        pictures, gone = [None] * len(rows), str(error)
    classes: dict[str, dict[str, list[Shown]]] = {}
    for row, picture in zip(rows, pictures, strict=True):
        kinds = classes.setdefault(row["class"], {"fewest": [], "most": []})
        kinds[row["kind"]].append(_shown(row, picture, gates))
    return Album(classes, tables.extremes["class"].nunique() - len(names), gone)


def _shown(row: dict[str, Any], picture: str | None, gates: Sequence[str]) -> Shown:
    skipped = row["skipped"].split()
    caption = f"{row['blocks']}" if row["right"] else f"{row['blocks']} ✗ {row['prediction']}"
    told = f"{row['file']}: {row['blocks']} of {len(gates)} blocks, {row['gflops']:.4g} GFLOPs; "
    told += f"answer {row['prediction']} ({'right' if row['right'] else 'wrong'}), "
    told += f"confidence {row['confidence']:.3f}; skipped: {', '.join(skipped) or 'none'}"
    return Shown(picture, inference_graph(gates, skipped), caption, bool(row["right"]), told)


def inference_graph(gates: Sequence[str], skipped: Sequence[str]) -> Graph:
    """Draw which blocks one image executed, a stage a row, in rows of ``ROW`` at most.

    Example:
        >>> inference_graph(["layer1.0", "layer1.1", "layer2.0"], ["layer1.1"])
        Graph(width=20, height=20, executed='M1 1h8v8h-8zM1 11h8v8h-8z', skipped='M11 1h8v8h-8z')
    """
    stages = pd.Series(gates).groupby([stage_of(gate) for gate in gates], sort=False)
    lines = [
        stage.tolist()[start : start + ROW]
        for _, stage in stages
        for start in range(0, len(stage), ROW)
    ]
    paths = {True: "", False: ""}
    for down, line in enumerate(lines):
        for across, gate in enumerate(line):
            paths[gate in skipped] += f"M{10 * across + 1} {10 * down + 1}h8v8h-8z"
    return Graph(10 * max(map(len, lines)), 10 * len(lines), paths[False], paths[True])


def read_pictures(data: str, files: Sequence[str]) -> list[str]:
    """Read images of a data set as ``data:`` addresses of small pictures.

    Args:
        data: The data set and split, as a trace's ``source`` says them.
        files: As a trace's column ``file`` does.

    Raises:
        UserError: One is no longer there, or the data set is neither a folder nor ``digits``.

    Example:
        >>> read_pictures("digits val", ["digits/00005"])[0][:30]
        'data:image/webp;base64,UklGR...'
    """
    read = _reader(data)
    return [_embedded(read(file)) for file in files]


def _reader(data: str) -> Callable[[str], Image.Image]:
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


def _embedded(image: Image.Image) -> str:
    kept = io.BytesIO()
    Image.fromarray(thumbnail(image)).save(kept, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(kept.getvalue()).decode()}"
