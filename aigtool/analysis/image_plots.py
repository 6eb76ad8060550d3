"""Figures of single images: the most extreme of each class, and one image's inference graph."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from aigtool.analysis.pictures import Picture
from aigtool.analysis.rates import stage_of, stage_rows
from aigtool.plotting import BLUE, GREY, PALE, VERMILION, head, styled

MOST_CLASSES = 20
"""Of more classes than these, those are drawn whose images differ most in blocks."""
PITCH = 1.45
"""From one row of pictures to the next, in widths of them."""
NAME = 11
"""Letters of a name that a picture is wide enough for."""


def drawn_classes(chosen: pd.DataFrame) -> list[str]:
    """Return the classes that a contact sheet has room for, in their order.

    Args:
        chosen: What ``extreme_images`` returned.
    """
    blocks = chosen.groupby("class", sort=False)["blocks"]
    spread = blocks.max() - blocks.min()
    kept = spread.sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]
    return [str(name) for name in spread.index if name in kept]


@styled
def contact_sheet(
    chosen: pd.DataFrame, pictures: Sequence[Picture | None], about: str = "", *, left_out: int = 0
) -> Figure:
    """Draw the images of each class that took the fewest and the most blocks.

    Args:
        chosen: Rows of what ``extreme_images`` returned.
        pictures: Each row's; where there is none a grey square stands.
        about: Which data, said under the title.
        left_out: Classes that there was no room for.
    """
    names = list(dict.fromkeys(chosen["class"]))
    most = int(chosen.groupby(["class", "kind"]).size().max())
    columns = 2 * most + 0.5
    size = 1.6 + 0.62 * columns, 1.3 + 0.62 * PITCH * len(names)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    title = "Images of each class that took the fewest and the most blocks"
    if left_out:
        title += f";\n{left_out} classes are left out, whose images differ less in them"
    head(figure, title, about)
    placed = chosen.assign(at=range(len(chosen)))
    for (name, kind), rows in placed.groupby(["class", "kind"], sort=False):
        start, down = (0 if kind == "fewest" else most + 0.5), -names.index(str(name)) * PITCH
        for number, (at, row) in enumerate(zip(rows["at"], rows.itertuples(), strict=True)):
            left = start + number
            picture = pictures[at]
            if picture is None:
                axes.add_patch(Rectangle((left, down), 0.94, 0.94, facecolor=PALE))
            else:
                axes.imshow(picture, extent=(left, left + 0.94, down, down + 0.94), aspect="equal")
            said = (
                f"{row.blocks}" if row.right else f"{row.blocks} ✗\n{_short(str(row.prediction))}"
            )
            axes.text(
                left + 0.47,
                down - 0.04,
                said,
                ha="center",
                va="top",
                fontsize=7,
                color="black" if row.right else VERMILION,
            )
    for kind, start in (("fewest", 0.0), ("most", most + 0.5)):
        axes.text(start, 1.05, f"{kind} blocks", fontsize=9)
    axes.set(xlim=(0, columns), ylim=(-PITCH * (len(names) - 1) - 0.45, 1.3))
    axes.set_yticks([0.47 - PITCH * row for row in range(len(names))], names)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


@styled
def inference_graph(graph: pd.DataFrame, picture: Picture, answer: str, about: str = "") -> Figure:
    """Draw the blocks that one image executed and skipped, in their order, a stage a row.

    Args:
        graph: A row a block: ``block``, ``gated``, ``executed`` and ``probability``.
        picture: The image.
        answer: What the network said of it.
        about: Which network, said under the title.
    """
    names, blocks = graph["block"].tolist(), [*graph.itertuples()]
    lines: list[tuple[str, list[Any]]] = []
    for row in stage_rows(names):
        stage = stage_of(names[row[0]])
        is_new = not row[0] or stage != stage_of(names[row[0] - 1])
        lines.append((stage * is_new, [blocks[at] for at in row]))
    widest = max(len(part) for _, part in lines)
    figure = Figure(
        figsize=(2.4 + 0.55 * widest, max(2.4, 1.0 + 0.75 * len(lines))), layout="constrained"
    )
    left, axes = figure.subplots(1, 2, width_ratios=[1.6, 0.8 + 0.55 * widest])
    head(figure, f"Blocks of one image: {answer}", about)
    left.imshow(picture)
    left.axis("off")
    for down, (name, part) in enumerate(lines):
        axes.text(-0.7, -down, name, ha="right", va="center")
        axes.plot([-0.6, len(part) - 0.4], [-down, -down], color=GREY, linewidth=1, zorder=0)
        for across, block in enumerate(part):
            _draw_block(axes, across, -down, block)
    axes.set(
        xlim=(-0.7 - 0.14 * max(len(n) for n, _ in lines), widest), ylim=(0.5 - len(lines), 0.5)
    )
    axes.axis("off")
    figure.supxlabel(
        "filled: executed; dotted: skipped\n"
        "inside: the gate's probability, above its threshold if executed",
        fontsize=8,
        color=GREY,
    )
    return figure


def _draw_block(axes: Axes, x: float, y: float, block: Any) -> None:
    box = FancyBboxPatch(
        (x - 0.36, y - 0.24),
        0.72,
        0.48,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=BLUE if block.executed else "white",
        edgecolor=BLUE if block.executed else GREY,
        linestyle="-" if block.executed else ":",
    )
    axes.add_patch(box)
    said = f"{block.probability:.2f}" if block.gated else "no gate"
    color = "white" if block.executed else "black"
    axes.text(x, y, said, ha="center", va="center", fontsize=7, color=color)
