"""The look of all figures.

Colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
PALE = "#DDDDDD"

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # names of classes and files are no formulas
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a drawing function draw in the common style."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(
    width: float, height: float, columns: int = 1, *, title: str = "", about: str = ""
) -> tuple[Figure, list[Axes]]:
    """Return a figure of axes side by side, with a title and a line about what is shown.

    Args:
        width: In inches.
        height: In inches.
        columns: Number of axes.
        title: What the figure shows.
        about: Which data it shows it for; what does not fit is cut off at its start.

    Returns:
        The figure and its axes, from left to right.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns)).tolist()
    head(figure, title, about)
    return figure, axes


def head(figure: Figure, title: str, about: str = "") -> None:
    """Write a figure's title, and under it which data it shows, as much as there is room for."""
    room = int(13 * figure.get_figwidth())  # characters of the heading's size that fit
    about = about if len(about) <= room else f"…{about[1 - room :]}"
    heading = "\n".join(line for line in (title, about) if line)
    if heading:
        figure.suptitle(heading, x=0.012, ha="left", fontsize=10)
