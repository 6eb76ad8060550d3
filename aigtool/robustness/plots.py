"""The accuracy-over-epsilon curves."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aigtool.plotting import BLUE, GREEN, ORANGE, new_figure, styled

_COLORS = {"gated": BLUE, "dense": ORANGE, "open": GREEN}


@styled
def robustness_figure(rows: pd.DataFrame, about: str = "") -> Figure:
    """Draw accuracy over epsilon: a colour a network, dashed under a defence.

    Args:
        rows: What ``attack_accuracy`` returned.
        about: Which data, said under the title.
    """
    figure, (axes,) = new_figure(6.4, 4.4, title="Accuracy under FGSM", about=about)
    for (network, defense, _), curve in rows.groupby(
        ["network", "defense", "quality"], dropna=False, sort=False
    ):
        defended = defense != "none"
        sorted_curve = curve.sort_values("epsilon")
        share = sorted_curve["top1"] / 100
        stderr = 100 * np.sqrt(share * (1 - share) / sorted_curve["images"])
        axes.errorbar(
            255 * sorted_curve["epsilon"],
            sorted_curve["top1"],
            yerr=stderr,
            color=_COLORS.get(str(network), "black"),
            linestyle="--" if defended else "-",
            marker="s" if defended else "o",
            ms=4,
            mfc="white" if defended else None,
            elinewidth=0.8,
            label=f"{network}, JPEG {curve['quality'].iloc[0]:.0f}" if defended else str(network),
        )
    axes.set(
        xlabel="epsilon, in 1/255 of the pixel range", ylabel="top-1 accuracy, %", ylim=(0, 102)
    )
    figure.legend(loc="outside lower left", ncols=4)
    return figure
