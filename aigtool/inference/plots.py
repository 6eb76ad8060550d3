"""Measured and ideal time over what gates execute."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from aigtool.inference.benchmark import Row
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled

COLORS = {"eager": ORANGE, "skip": BLUE, "compile": VERMILION, "onnx": GREEN}


@styled
def bench_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw each engine's time a batch, measured and ideal, as a share of its dense network's.

    Args:
        rows: What was measured.
        title: Which network.

    Returns:
        Axes side by side, one a batch size; the lines lead from all gates closed to all open.
    """
    sizes = sorted({row.batch_size for row in rows})
    first = rows[0]
    about = f"{first.device}, {first.dtype}, threads: {first.threads}; points measured, lines ideal"
    figure, axes = new_figure(max(4.5, 3.2 * len(sizes)), 3.4, len(sizes), title=title, about=about)
    for ax, size in zip(axes, sizes, strict=True):
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
        for engine in dict.fromkeys(row.engine for row in rows):
            shown = [row for row in rows if (row.engine, row.batch_size) == (engine, size)]
            if not shown:
                continue
            dense = np.array([row.dense_ms for row in shown])
            ends = [np.mean([getattr(row, end) for row in shown] / dense) for end in _ENDS]
            ax.plot([0, 1], ends, color=COLORS[engine], linewidth=1)
            ax.errorbar(
                [row.gated_flops_fraction for row in shown],
                [row.gated_ms for row in shown] / dense,
                yerr=[row.gated_iqr_ms for row in shown] / dense / 2,
                color=COLORS[engine],
                fmt="o",
                markersize=4,
                label=engine,
            )
        ax.set(
            title=f"batch {size}",
            xlabel="executed share of gated GFLOPs",
            xlim=(0, 1),
            ylim=(0, None),
        )
    axes[0].set_ylabel("time over the dense network's")
    axes[0].legend(loc="upper left")
    return figure


_ENDS = ("closed_ms", "open_ms")
