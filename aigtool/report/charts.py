"""Curves as the plotting library of the page takes them, with their numbers as a table.

What a user named is escaped here, since the library reads a little HTML in what it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION

COLORS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", GREY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")


@dataclass(frozen=True)
class Series:
    """Points of a chart.

    Attributes:
        name: In the legend.
        x: Along.
        y: Up.
        said: What each point says when it is pointed at.
        stderr: Standard errors of ``y``, drawn as bars.
        spans: Or intervals, from where to where, drawn as bars.
        kind: ``lines``, ``points``, ``both`` or ``bars``.
        color: By default the next of ``COLORS``.
        dash: Of its line: ``solid``, ``dash`` or ``dot``.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    said: Sequence[str]
    stderr: Sequence[float] | None = None
    spans: Sequence[tuple[float, float]] | None = None
    kind: str = "both"
    color: str | None = None
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """Series over common axes.

    Attributes:
        title: What it shows.
        x: What runs along.
        y: What goes up.
        series: The curves.
        range_x: From where to where; by default what the points need.
        range_y: The same of ``y``.
        categories: What ``x`` names, in its order, where it is not of numbers.
        from_zero: Whether ``y`` begins at zero.

    Example:
        >>> line = Series("a<b", [1, 2], [0.5, 0.25], ["one", "two"])
        >>> figure = Chart("Loss", "epoch", "loss", [line]).figure()
        >>> figure["data"][0]["name"], figure["layout"]["xaxis"]["title"]["text"]
        ('a&lt;b', 'epoch')
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    range_x: tuple[float, float] | None = None
    range_y: tuple[float, float] | None = None
    categories: Sequence[str] = ()
    from_zero: bool = False

    def figure(self) -> dict[str, Any]:
        """Return what the library draws."""
        data = [_drawn(series, number) for number, series in enumerate(self.series)]
        zero = {"rangemode": "tozero"} if self.from_zero else {}
        named_x: dict[str, Any] = {}
        if self.categories:
            order = [_safe(name) for name in self.categories]
            named_x = {"type": "category", "categoryorder": "array", "categoryarray": order}
        named = sum(bool(series.name) for series in self.series)
        return {
            "data": data,
            "layout": {
                "barmode": "stack",
                "xaxis": _axis(self.x, self.range_x) | named_x,
                "yaxis": _axis(self.y, self.range_y) | zero,
                "showlegend": named > 1,
            },
        }


def _axis(title: str, span: tuple[float, float] | None) -> dict[str, Any]:
    limits = {} if span is None else {"range": [*span]}
    return {"title": {"text": title}, "zeroline": False, "automargin": True, **limits}


def _safe(text: str) -> str:
    return escape(text, quote=False)


def _drawn(series: Series, number: int) -> dict[str, Any]:
    color = series.color or COLORS[number % len(COLORS)]
    drawn: dict[str, Any] = {
        "name": _safe(series.name),
        "x": [_safe(x) if isinstance(x, str) else x for x in series.x],
        "y": [*series.y],
        "hovertext": [_safe(text) for text in series.said],
        "hoverinfo": "text",
        "showlegend": bool(series.name),
        "marker": {"color": color},
    }
    if series.kind == "bars":
        return {"type": "bar", **drawn}
    mode = {"lines": "lines", "points": "markers", "both": "lines+markers"}[series.kind]
    drawn["marker"] |= {"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]}
    drawn["line"] = {"color": color, "width": 2, "dash": series.dash}
    if series.stderr is not None:
        bars = {"type": "data", "array": [*series.stderr], "thickness": 1, "width": 3}
        drawn["error_y"] = bars
    if series.spans is not None:
        ends = [*zip(series.y, series.spans, strict=True)]
        drawn["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - y for y, (_, high) in ends],
            "arrayminus": [y - low for y, (low, _) in ends],
            "thickness": 1,
            "width": 3,
        }
    return {"type": "scatter", "mode": mode, **drawn}
