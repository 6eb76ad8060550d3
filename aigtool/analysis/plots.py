"""Figures of execution rates and of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled
from aigtool.trace import ADAPTIVE


@styled
def class_heatmap(rates: pd.DataFrame, about: str = "") -> Figure:
    """Draw execution rates, a row a class and a column a gate.

    Args:
        rates: What ``class_rates`` returned.
        about: Which data, said under the title.
    """
    rows, columns = rates.shape
    label = max((len(str(name)) for name in rates.index), default=0)
    width = min(max(6.0, 2.2 + 0.07 * label + 0.24 * columns), 24)
    height = min(max(2.8, 1.9 + 0.22 * rows), 40)
    figure, (axes,) = new_figure(
        width, height, title="Execution rate of each gate, by class", about=about
    )
    image = axes.imshow(rates.to_numpy(), aspect="auto", vmin=0, vmax=1, cmap="cividis")
    axes.grid(visible=False)
    axes.set_yticks(range(rows), [str(name) for name in rates.index])
    _label_gates(axes, [str(name) for name in rates.columns])
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("execution rate")
    return figure


@styled
def gate_bars(rates: pd.DataFrame, about: str = "") -> Figure:
    """Draw each gate's execution rate; what ``gate_rates`` returned."""
    low, high = ADAPTIVE
    kinds = {
        "always on (≥ 95 %)": (rates["rate"] >= high, BLUE),
        "adaptive": ((rates["rate"] > low) & (rates["rate"] < high), GREEN),
        "always off (≤ 5 %)": (rates["rate"] <= low, VERMILION),
    }
    width = min(max(6.0, 1.6 + 0.24 * len(rates)), 24)
    figure, (axes,) = new_figure(width, 3.6, title="Execution rate of each gate", about=about)
    for label, (chosen, color) in kinds.items():
        if chosen.any():
            positions = np.flatnonzero(chosen.to_numpy())
            # A sliver stands for a rate of zero, which would not be seen at all.
            heights = rates["rate"].to_numpy()[positions].clip(min=0.006)
            axes.bar(positions, heights, color=color, width=0.8, label=label)
    if len(rates):
        mean = rates["rate"].mean()
        axes.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=f"mean {mean:.2f}")
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.02), xlim=(-0.7, len(rates) - 0.3), ylabel="execution rate")
    _label_gates(axes, [str(name) for name in rates["gate"]])
    figure.legend(loc="outside lower left", ncols=4)
    return figure


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
    axes.set(xlabel="gated blocks executed", ylabel="images", xlim=(-0.7, len(counts) - 0.3))
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@styled
def training_figure(metrics: pd.DataFrame) -> Figure:
    """Draw a run's ``metrics.csv``: loss, accuracy and execution rates over the epochs."""
    figure, (loss, accuracy, rate) = new_figure(10, 3.4, columns=3)
    epochs = metrics["epoch"]
    marker = "o" if len(metrics) < 30 else None
    loss.plot(epochs, metrics["train_loss"], color=BLUE, marker=marker, ms=3, label="training")
    loss.plot(
        epochs, metrics["val_loss"], color=ORANGE, marker=marker, ms=3, label="validation (task)"
    )
    loss.set(title="Loss", xlabel="epoch", ylim=(0, None))

    accuracy.plot(epochs, metrics["train_top1"], color=BLUE, marker=marker, ms=3, label="training")
    accuracy.errorbar(
        epochs,
        metrics["val_top1"],
        yerr=metrics["val_top1_stderr"],
        color=ORANGE,
        marker=marker,
        ms=3,
        elinewidth=0.8,
        label="validation ± standard error",
    )
    best = metrics[metrics["best"]].tail(1)
    accuracy.plot(
        best["epoch"], best["val_top1"], "o", ms=9, mfc="none", mec=GREY, label="best epoch"
    )
    accuracy.set(title="Top-1 accuracy, %", xlabel="epoch")

    gates = [name for name in metrics if str(name).startswith("rate.")]
    if gates:
        rate.plot(epochs, metrics[gates], color=GREY, linewidth=0.6, alpha=0.5)
        rate.plot([], [], color=GREY, linewidth=0.6, label="single gates")
        rate.plot(
            epochs,
            metrics["train_execution_rate"],
            color=BLUE,
            marker=marker,
            ms=3,
            label="mean, training",
        )
        rate.plot(
            epochs,
            metrics["train_argmax_rate"],
            color=GREEN,
            linewidth=1,
            label="mean, training without noise",
        )
        rate.plot(
            epochs,
            metrics["val_execution_rate"],
            color=ORANGE,
            marker=marker,
            ms=3,
            label="mean, validation, calibrated",
        )
    rate.set(title="Execution rate", xlabel="epoch", ylim=(-0.02, 1.02))
    for axes in (loss, accuracy, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, _ = axes.get_legend_handles_labels()
        if handles:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16))
    return figure


@styled
def sweep_figure(points: pd.DataFrame, targets: pd.DataFrame, about: str = "") -> Figure:
    """Draw accuracy over GFLOPs: a sweep's runs and their means, dense and other networks.

    Args:
        points: A row a network, as ``training.sweep.point_rows`` returns them.
        targets: A row a target, as ``training.sweep.target_rows`` returns them.
        about: Which data, said under the title.
    """
    figure, (axes,) = new_figure(6.4, 4.2, title="Accuracy over compute", about=about)
    others = points[points["target"].isna()].sort_values("gflops_executed")
    axes.errorbar(
        others["gflops_executed"],
        others["top1"],
        yerr=others["top1_stderr"],
        color=GREY,
        marker="s",
        ms=4,
        elinewidth=0.8,
        linestyle="--",
        linewidth=0.8,
        label="without gates ± standard error",
    )
    for _, row in others.iterrows():
        axes.annotate(
            str(row["network"]),
            (row["gflops_executed"], row["top1"] + row["top1_stderr"]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=GREY,
        )
    runs, means = points[points["target"].notna()], targets.sort_values("gflops_executed")
    kind = runs["network"].iloc[0]
    for table, style, alpha, size, label in (
        (runs, ".", 0.4, 6, f"{kind}, runs"),
        (means, "o-", 1, 5, f"{kind}, mean of runs"),
    ):
        axes.plot(
            table["gflops_executed"],
            table["top1"],
            style,
            color=BLUE,
            alpha=alpha,
            ms=size,
            label=label,
        )
    for _, row in means.iterrows():
        axes.annotate(
            f"{row['target']:g}",
            (row["gflops_executed"], row["top1"]),
            xytext=(5, -11),
            textcoords="offset points",
            fontsize=8,
            color=BLUE,
        )
    axes.set(xlabel="GFLOPs an image (multiply-accumulates)", ylabel="top-1 accuracy, %")
    axes.set_xlim(0, 1.08 * points["gflops_executed"].max())
    axes.margins(y=0.12)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _label_gates(axes: Axes, names: Sequence[str]) -> None:
    size = 8 if len(names) <= 60 else 5
    axes.set_xticks(range(len(names)), list(names), rotation=90, fontsize=size)
    axes.tick_params(axis="both", length=0)
