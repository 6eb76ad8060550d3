"""Images that a trace is of, small and inside the page, and the blocks that each executed."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from aigtool.analysis.image_plots import drawn_classes
from aigtool.analysis.pictures import Picture, image_reader, read_pictures
from aigtool.analysis.rates import stage_rows
from aigtool.errors import UserError
from aigtool.output import records
from aigtool.report.gates import GateTables


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
        gone: What is to be said of pictures that are gone.
    """

    classes: dict[str, dict[str, list[Shown]]]
    more: int
    gone: str


def album(tables: GateTables) -> Album:
    """Return the images of the classes that there is room for, with pictures if they are there."""
    names = drawn_classes(tables.extremes)
    rows = records(tables.extremes[tables.extremes["class"].isin(names)])
    gates = tables.gates["gate"].tolist()
    pictures: list[Picture | None] = [None] * len(rows)
    try:
        read = image_reader(tables.found["data"])
        pictures, gone = read_pictures(read, [row["file"] for row in rows])
    except UserError as error:
        gone = f"No pictures: {error}"
    classes: dict[str, dict[str, list[Shown]]] = {}
    for row, picture in zip(rows, pictures, strict=True):
        kinds = classes.setdefault(row["class"], {"fewest": [], "most": []})
        kinds[row["kind"]].append(_shown(row, picture, gates))
    return Album(classes, tables.extremes["class"].nunique() - len(names), gone)


def _shown(row: dict[str, Any], picture: Picture | None, gates: Sequence[str]) -> Shown:
    skipped = row["skipped"].split()
    caption = f"{row['blocks']}" if row["right"] else f"{row['blocks']} ✗ {row['prediction']}"
    told = f"{row['file']}: {row['blocks']} of {len(gates)} blocks, {row['gflops']:.4g} GFLOPs; "
    told += f"answer {row['prediction']} ({'right' if row['right'] else 'wrong'}), "
    told += f"confidence {row['confidence']:.3f}; skipped: {', '.join(skipped) or 'none'}"
    embedded = None if picture is None else _embedded(picture)
    return Shown(embedded, inference_graph(gates, skipped), caption, bool(row["right"]), told)


def inference_graph(gates: Sequence[str], skipped: Sequence[str]) -> Graph:
    """Draw which blocks one image executed, a stage a row.

    Example:
        >>> inference_graph(["layer1.0", "layer1.1", "layer2.0"], ["layer1.1"])
        Graph(width=20, height=20, executed='M1 1h8v8h-8zM1 11h8v8h-8z', skipped='M11 1h8v8h-8z')
    """
    lines = stage_rows(gates)
    paths = {True: "", False: ""}
    for down, line in enumerate(lines):
        for across, at in enumerate(line):
            paths[gates[at] in skipped] += f"M{10 * across + 1} {10 * down + 1}h8v8h-8z"
    return Graph(10 * max(map(len, lines)), 10 * len(lines), paths[False], paths[True])


def _embedded(picture: Picture) -> str:
    """Return it as a ``data:`` address."""
    kept = io.BytesIO()
    Image.fromarray(picture).save(kept, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(kept.getvalue()).decode()}"
