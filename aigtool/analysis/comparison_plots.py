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
    width = 4.2 + (min(max(4.0, 1.0 + 0.22 * len(gates)), 20) if len(gates) else 0)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    head(figure, "Networks side by side", about)
    parts = [3.4, width - 4.2] if len(gates) else [1]
    stages = [stage_of(str(name)) for name in gates.index]
    axes = np.atleast_1d(figure.subplots(1, len(parts), width_ratios=parts))
    for number, row in enumerate(rows.to_dict("records")):
        name, style = str(row["trace"]), _style(number)
        axes[0].errorbar(
            row["gflops_executed"],
            row["top1"],
            yerr=row["top1_stderr"],
            label=name,
            elinewidth=0.8,
            ms=6,
            **style,
        )
        if name in gates:
            axes[1].plot(range(len(gates)), gates[name], ms=5, alpha=0.8, linestyle="", **style)
    axes[0].set(xlabel="GFLOPs an image", ylabel="top-1 accuracy, % ± standard error")
    axes[0].margins(x=0.15)
    if len(gates):
        axes[1].set(ylabel="execution rate", ylim=(-0.03, 1.03), xlim=(-0.7, len(gates) - 0.3))
        axes[1].grid(visible=False, axis="x")
        label_gates(axes[1], gates.index.tolist())
        for edge, (before, after) in enumerate(pairwise(stages)):
            if before != after:
                axes[1].axvline(edge + 0.5, color=GREY, linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=max(2, int(width / 2.5)))
    return figure


def _style(number: int) -> dict[str, str]:
    at = number % len(_COLORS)
    return {"color": _COLORS[at], "marker": _MARKERS[at]}
