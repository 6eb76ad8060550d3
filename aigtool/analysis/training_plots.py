"""Figures of training and of sweeps."""

import re
from itertools import pairwise

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aigtool.analysis.rates import stage_of
from aigtool.intervals import wilson_interval
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, new_figure, styled

RATE = "rate."
"""What the columns of gates in ``metrics.csv`` are named by."""


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

    gates = [name for name in metrics if str(name).startswith(RATE)]
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
def gates_figure(metrics: pd.DataFrame, about: str = "") -> Figure:
    """Draw each gate's execution rate over the epochs, on validation images.

    Args:
        metrics: A run's ``metrics.csv``.
        about: Which run, said under the title.
    """
    rates = gates_over_epochs(metrics)
    gates, epochs = rates.shape
    width = min(max(6.0, 3.0 + 0.24 * epochs), 16)
    figure, (axes,) = new_figure(
        width, max(2.9, 1.6 + 0.17 * gates), title="Gates during training", about=about
    )
    image = axes.imshow(rates.to_numpy(), aspect="auto", vmin=0, vmax=1, cmap="cividis")
    axes.grid(visible=False)
    axes.set_yticks(range(gates), rates.index.tolist(), fontsize=8)
    shown = range(0, epochs, -(-epochs // 30))
    axes.set_xticks(shown, [str(rates.columns[at]) for at in shown])
    stages = [stage_of(name) for name in rates.index]
    for row, (before, after) in enumerate(pairwise(stages)):
        if before != after:
            axes.axhline(row + 0.5, color="white", linewidth=1)
    axes.set_xlabel("epoch")
    figure.colorbar(image, ax=axes, pad=0.01, label="execution rate")
    return figure


def gates_over_epochs(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row a gate, a column an epoch: its execution rate on validation images.

    Example:
        >>> metrics = pd.DataFrame({"epoch": [1, 2], "rate.layer1.0": [0.9, 0.5]})
        >>> gates_over_epochs(metrics)
        epoch       1    2
        gate
        layer1.0  0.9  0.5
    """
    rates = metrics.set_index("epoch").filter(regex=f"^{re.escape(RATE)}").T
    rates.index = pd.Index([name.removeprefix(RATE) for name in rates.index], name="gate")
    return rates


def epoch_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row a gate and epoch: its execution rate on validation images, with an interval.

    Example:
        >>> metrics = pd.DataFrame({"epoch": [1, 2], "val_images": 10, "rate.layer1.0": [0.9, 0.5]})
        >>> epoch_table(metrics).round(2)
               gate  epoch  executed  images  rate   low   high
        0  layer1.0      1         9      10   0.9  0.60   0.98
        1  layer1.0      2         5      10   0.5  0.24   0.76
    """
    rates = gates_over_epochs(metrics).reset_index()
    table = rates.melt("gate", var_name="epoch", value_name="rate")
    images = table["epoch"].map(metrics.set_index("epoch")["val_images"])
    executed = (table["rate"] * images).round().astype(int)
    low, high = wilson_interval(executed, images)
    counts = {"executed": executed, "images": images}
    return table.assign(**counts, low=low, high=high)[
        ["gate", "epoch", "executed", "images", "rate", "low", "high"]
    ]


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
