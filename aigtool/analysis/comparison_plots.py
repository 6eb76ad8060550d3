"""The figure of several traces side by side."""

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aigtool.analysis.plots import label_gates
from aigtool.analysis.rates import stage_of
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, head, styled

_COLORS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "black", GREY)
_MARKERS = "osD^vP*X"


@styled
def comparison_figure(rows: pd.DataFrame, gates: pd.DataFrame, about: str = "") -> Figure:
    """Draw accuracy over GFLOPs, a point a trace, and beside it each gate's execution rates.

    Args:
        rows: What ``compare_traces`` returned.
        gates: What ``compare_gates`` returned.
        about: Which data, said under the title.
    """
    names = [*dict.fromkeys(gates["gate"])]
    width = 4.2 + (min(max(4.0, 1.0 + 0.22 * len(names)), 20) if names else 0)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    head(figure, "Networks side by side", about)
    parts = [3.4, width - 4.2] if names else [1]
    stages = [stage_of(name) for name in names]
    axes = np.atleast_1d(figure.subplots(1, len(parts), width_ratios=parts))
    for number, row in enumerate(rows.to_dict("records")):
        name, style = str(row["trace"]), _style(number)
        axes[0].errorbar(
            row["gflops_executed"],
            row["top1"],
            yerr=row["top1_stderr"],
            label=name if rows["images"].nunique() == 1 else f"{name}, {row['images']} images",
            elinewidth=0.8,
            ms=6,
            **style,
        )
        if len(rates := gates.loc[gates["trace"] == name, "rate"]):
            axes[1].plot(range(len(names)), rates, ms=5, alpha=0.8, linestyle="", **style)
    axes[0].set(xlabel="GFLOPs an image", ylabel="top-1 accuracy, % ± standard error")
    axes[0].margins(x=0.15)
    axes[0].locator_params(axis="x", nbins=4)  # the numbers may be long
    if names:
        axes[1].set(ylabel="execution rate", ylim=(-0.03, 1.03), xlim=(-0.7, len(names) - 0.3))
        axes[1].grid(visible=False, axis="x")
        label_gates(axes[1], names)
        for edge, (before, after) in enumerate(pairwise(stages)):
            if before != after:
                axes[1].axvline(edge + 0.5, color=GREY, linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=max(2, int(width / 2.5)))
    return figure


def _style(number: int) -> dict[str, str]:
    # Each round of the colours goes with other markers.
    marker = _MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)]
    return {"color": _COLORS[number % len(_COLORS)], "marker": marker}
