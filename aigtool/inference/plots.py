"""Measured and ideal time over what gates execute."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from aigtool.inference.benchmark import Row
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled

COLORS = {"eager": ORANGE, "skip": BLUE, "compile": VERMILION, "onnx": GREEN}
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Lines and markers of an engine's rows that differ in type or threads."""


@styled
def bench_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw each engine's time a batch, measured and ideal, as a share of its dense network's.

    Args:
        rows: What was measured.
        title: Which network.

    Returns:
        Axes side by side, one a batch size; the lines lead from all gates closed to all open, over
        the executed share of what gates can save, on which the ideal is a line.
    """
    sizes = sorted({row.batch_size for row in rows})
    types, threads = {row.dtype for row in rows}, {row.threads for row in rows}
    shared = _words(rows[0], len(types) == 1, len(threads) == 1)
    about = f"{', '.join([rows[0].device, *shared])}; points measured, lines ideal"
    figure, axes = new_figure(max(4.5, 3.2 * len(sizes)), 3.4, len(sizes), title=title, about=about)
    variants = sorted({(row.dtype, row.threads) for row in rows})
    for ax, size in zip(axes, sizes, strict=True):
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
        lines: dict[tuple[str, str, int], list[Row]] = {}
        for row in rows:
            if row.batch_size == size:
                lines.setdefault((row.engine, row.dtype, row.threads), []).append(row)
        for (engine, dtype, count), shown in lines.items():
            line, marker = STYLES[variants.index((dtype, count)) % len(STYLES)]
            dense = np.array([row.dense_ms for row in shown])
            ends = [np.mean([getattr(row, end) for row in shown] / dense) for end in _ENDS]
            ax.plot([0, 1], ends, color=COLORS[engine], linewidth=1, linestyle=line)
            ax.errorbar(
                [row.gated_flops_fraction for row in shown],
                [row.gated_ms for row in shown] / dense,
                yerr=[row.gated_iqr_ms for row in shown] / dense / 2,
                color=COLORS[engine],
                fmt=marker,
                markersize=4,
                label=", ".join([engine, *_words(shown[0], len(types) > 1, len(threads) > 1)]),
            )
        ax.set(
            title=f"batch {size}",
            xlabel="executed share of gated GFLOPs",
            xlim=(0, 1),
            ylim=(0, None),
        )
    axes[0].set_ylabel("time over the dense network's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _words(row: Row, with_type: bool, with_threads: bool) -> list[str]:
    return [row.dtype] * with_type + [f"threads: {row.threads}"] * with_threads


_ENDS = ("closed_ms", "open_ms")
