"""Figures of what images cost."""

from collections.abc import Sequence
from math import floor

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aigtool.analysis.costs import CLASS
from aigtool.plotting import BLUE, GREY, ORANGE, head, new_figure, styled
from aigtool.trace import ExecutionTrace

MOST_CLASSES = 40
"""Of more classes than these, the cheapest and the dearest are drawn."""


@styled
def blocks_histogram(counts: pd.DataFrame, about: str = "") -> Figure:
    """Draw how many images executed each number of blocks; what ``blocks_executed`` returned."""
    figure, (axes,) = new_figure(6.4, 3.6, title="Gated blocks executed per image", about=about)
    axes.bar(counts["blocks"], counts["right"], color=BLUE, width=0.85, label="right answer")
    axes.bar(
        counts["blocks"],
        counts["wrong"],
        bottom=counts["right"],
        color=ORANGE,
        width=0.85,
        label="wrong answer",
    )
    total = counts["images"].sum()
    if total:
        mean = (counts["blocks"] * counts["images"]).sum() / total
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1, label=f"mean {mean:.1f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="gated blocks executed", ylabel="images")
    if len(taken := counts.loc[counts["images"] > 0, "blocks"]):
        axes.set_xlim(taken.min() - 1.7, taken.max() + 1.7)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@styled
def cost_figure(
    trace: ExecutionTrace, costs: pd.DataFrame, confidence: pd.DataFrame, about: str = ""
) -> Figure:
    """Draw GFLOPs per image: right answers beside wrong ones, by class, and over confidence.

    Args:
        trace: Of a network with gates.
        costs: What ``cost_table`` returned.
        confidence: What ``cost_by_confidence`` returned.
        about: Which data, said under the title.
    """
    every = costs[costs["images"].str.startswith(CLASS)]
    classes = _chosen(every)
    figure = Figure(figsize=(10, max(3.6, 1.6 + 0.19 * len(classes))), layout="constrained")
    spread, by_class, over = figure.subplots(1, 3)
    head(figure, "GFLOPs per image", about)
    _draw_answers(spread, trace)

    rows = np.arange(len(classes))
    by_class.hlines(
        rows, classes["gflops_p5"], classes["gflops_p95"], color=GREY, label="5 to 95 % of images"
    )
    by_class.plot(classes["gflops_mean"], rows, "o", color=BLUE, ms=4, label="mean")
    names = classes["images"].str.removeprefix(CLASS)
    by_class.set_yticks(rows, names.tolist())
    left_out = len(every) - len(classes)
    ends = f": the {MOST_CLASSES // 2} cheapest, the {MOST_CLASSES // 2} dearest" * (left_out > 0)
    by_class.set(title=f"by class{ends}", xlabel="GFLOPs")
    by_class.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)

    over.errorbar(
        confidence.index,
        confidence["gflops"],
        yerr=confidence["gflops_stderr"],
        fmt="o",
        color=BLUE,
        ms=4,
        elinewidth=0.8,
    )
    starts = _percentages(confidence["low"].tolist())
    counted = [f"{low} ({n})" for low, n in zip(starts, confidence["images"], strict=True)]
    over.set_xticks(confidence.index, counted, rotation=90)
    over.set(title="by confidence, ± standard error", xlabel="confidence from, % (images)")
    return figure


def _draw_answers(axes: Axes, trace: ExecutionTrace) -> None:
    edges = np.histogram_bin_edges(trace.gflops, bins=min(20, 2 + len(trace.gates))).tolist()
    for name, chosen, color in (("right", trace.correct, BLUE), ("wrong", ~trace.correct, ORANGE)):
        if chosen.any():
            values = trace.gflops[chosen]
            shares = np.full(len(values), 100 / len(values))
            label = f"{name}, {len(values)} images"
            axes.hist(
                values,
                edges,
                weights=shares,
                histtype="stepfilled" if name == "right" else "step",
                color=color,
                linewidth=1.5,
                label=label,
            )
            axes.axvline(values.mean(), color=color, linestyle="--", linewidth=1.2)
    axes.set(title="by answer; dashed: the mean", xlabel="GFLOPs", ylabel="of those images, %")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)


def _chosen(classes: pd.DataFrame) -> pd.DataFrame:
    """Return the classes to draw, from the cheapest to the dearest."""
    ordered = classes.sort_values("gflops_mean")
    if len(ordered) <= MOST_CLASSES:
        return ordered
    half = MOST_CLASSES // 2
    return pd.concat([ordered.head(half), ordered.tail(half)])


def _percentages(shares: Sequence[float]) -> list[str]:
    """Write shares in percent, rounded down, each with as few digits as tell it from the others.

    Example:
        >>> _percentages([0.50367, 0.99991, 0.99997, 1.0])
        ['50.36', '99.991', '99.997', '100']
    """
    rounded = [[floor(s * 10 ** (d + 2)) / 10**d for s in shares] for d in range(2, 6)]
    told = [
        next((values for values in rounded if values.count(values[n]) == 1), rounded[-1])[n]
        for n in range(len(shares))
    ]
    return [f"{percent:.9g}" for percent in told]
