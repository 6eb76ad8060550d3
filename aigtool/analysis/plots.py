"""Figures of execution rates."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from aigtool.analysis.clustering import class_tree, tree_branches, tree_links
from aigtool.analysis.permutation import Integers
from aigtool.analysis.rates import KINDS
from aigtool.plotting import BLUE, GREEN, GREY, VERMILION, head, new_figure, styled


@styled
def class_heatmap(
    rates: pd.DataFrame, gates: pd.DataFrame, about: str = "", *, most_rows: int | None = None
) -> Figure:
    """Draw execution rates, a row a class and a column a gate, classes that are alike together.

    Beside the rows stands the tree of their clustering (Ward), over the columns which blocks
    downsample; lines part the stages.

    Args:
        rates: What ``class_rates`` returned.
        gates: What ``gate_rates`` returned.
        about: Which data, said under the title.
        most_rows: Of more classes than this, each row is the mean of one of so many branches of the
            tree, with the number of its classes; by default each class has its row.
    """
    tree = class_tree(rates.to_numpy())
    branches = tree_branches(tree, most_rows or len(rates))
    bands = _bands(rates, branches.values())
    rows, columns = bands.shape
    label = max(len(str(name)) for name in bands.index)
    width = min(max(6.0, 3.0 + 0.07 * label + 0.24 * columns), 24)
    height = max(2.9, 2.1 + 0.19 * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    left, axes = figure.subplots(1, 2, width_ratios=[1, max(4, width - 2)])
    head(figure, "Execution rate of each gate, by class", about)
    image = axes.imshow(
        bands.to_numpy(),
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="cividis",
        interpolation="none",  # a vector file then holds a pixel a cell, and draws it sharp
    )
    axes.grid(visible=False)
    axes.set_yticks(range(rows), [str(name) for name in bands.index])
    axes.yaxis.tick_right()
    label_gates(axes, [str(name) for name in bands.columns])
    mark_gates(figure, axes, gates)
    figure.colorbar(image, ax=axes, pad=0.01, label="execution rate", shrink=min(1, 4 / height))
    left.axis("off")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", ncols=2)
    if len(tree) and tree[-1, 2] > 0:  # else all classes are alike
        left.add_collection(
            LineCollection(tree_links(tree, [*branches]), colors=GREY, linewidths=1)
        )
        left.set(xlim=(1.02 * tree[-1, 2], 0), ylim=axes.get_ylim())
    return figure


def _bands(rates: pd.DataFrame, branches: Collection[Integers]) -> pd.DataFrame:
    """Return the mean rates of branches of classes, by a name that says how many they are."""
    names = [
        f"{rates.index[part[0]]} … {rates.index[part[-1]]} ({len(part)})"
        if len(part) > 1
        else str(rates.index[part[0]])
        for part in branches
    ]
    means = [rates.iloc[part].mean().to_numpy() for part in branches]
    return pd.DataFrame(means, index=names, columns=rates.columns)


@styled
def gate_bars(rates: pd.DataFrame, about: str = "") -> Figure:
    """Draw each gate's execution rate and how much it differs between classes.

    Args:
        rates: What ``gate_rates`` returned.
        about: Which data, said under the title.
    """
    names = {"always on": "always on (≥ 95 %)", "always off": "always off (≤ 5 %)"}
    width = min(max(6.0, 1.6 + 0.24 * len(rates)), 24)
    figure, (axes,) = new_figure(width, 3.8, title="Execution rate of each gate", about=about)
    for kind, color in zip(KINDS, (BLUE, GREEN, VERMILION), strict=True):
        chosen = rates[rates["kind"] == kind]
        if len(chosen):
            # A sliver stands for a rate of zero, which would not be seen at all.
            heights = chosen["rate"].clip(lower=0.006)
            axes.bar(chosen.index, heights, color=color, width=0.8, label=names.get(kind, kind))
    axes.vlines(
        rates.index,
        rates["class_min"],
        rates["class_max"],
        color="black",
        linewidth=0.9,
        label="lowest to highest class",
    )
    mean = rates["rate"].mean()
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=f"mean {mean:.2f}")
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.02), xlim=(-0.7, len(rates) - 0.3), ylabel="execution rate")
    label_gates(axes, [str(name) for name in rates["gate"]])
    mark_gates(figure, axes, rates)
    figure.legend(loc="outside lower left", ncols=max(2, min(6, int(width / 2))))
    return figure


def label_gates(axes: Axes, names: Sequence[str]) -> None:
    """Name the columns of gates."""
    size = 8 if len(names) <= 60 else 5
    axes.set_xticks(range(len(names)), list(names), rotation=90, fontsize=size)
    axes.tick_params(axis="both", length=0)


def mark_gates(figure: Figure, axes: Axes, gates: pd.DataFrame) -> None:
    """Part the stages by lines; over the axes, mark blocks that downsample or end a stage."""
    stages = gates["stage"].to_numpy()
    for edge in np.flatnonzero(stages[1:] != stages[:-1]):
        axes.axvline(edge + 0.5, color=GREY, linewidth=0.8)
    above = offset_copy(axes.get_xaxis_transform(), figure, y=6, units="points")
    for column, marker, label in (
        ("downsamples", "v", "downsamples"),
        ("last", "|", "last of its stage"),
    ):
        at = np.flatnonzero(gates[column])
        if len(at):
            (line,) = axes.plot(at, np.ones(len(at)), marker, color="black", ms=4, transform=above)
            line.set(clip_on=False, label=label)
