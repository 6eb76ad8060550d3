"""Every figure of a trace as files, with the numbers behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from aigtool.analysis.comparison import compare_gates, compare_traces
from aigtool.analysis.comparison_plots import comparison_figure
from aigtool.analysis.cost_plots import blocks_histogram, cost_figure
from aigtool.analysis.costs import cost_by_confidence, cost_table
from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.findings import findings
from aigtool.analysis.image_plots import contact_sheet, drawn_classes
from aigtool.analysis.pictures import image_reader, read_pictures
from aigtool.analysis.plots import class_heatmap, gate_bars
from aigtool.analysis.rates import blocks_executed, class_rates, class_table, gate_rates
from aigtool.analysis.training_plots import epoch_table, gates_figure
from aigtool.data.images import ImageSet
from aigtool.errors import UserError
from aigtool.output import remove_others, replacing, write_json
from aigtool.trace import ExecutionTrace

_FIGURES = (
    *("class_rates", "gate_rates", "blocks_executed", "costs", "costs_by_confidence"),
    *("extreme_images", "gates_in_training"),
)
_KINDS = ("csv", "png", "svg", "pdf")
MOST_ROWS = 100
"""Of more classes than these, a picture of pixels shows bands; a vector file has each of them."""


def write_analysis(
    trace: ExecutionTrace,
    folder: str | Path,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    clusters: int | None = None,
    images: ImageSet | None = None,
    metrics: pd.DataFrame | None = None,
    formats: Sequence[str] = ("png", "svg"),
    seed: int = 0,
) -> tuple[list[Path], dict[str, Any]]:
    """Write each figure of a trace, its numbers as CSV, and the findings as JSON.

    Args:
        trace: Of a network with gates.
        folder: Where to.
        groups: Names of classes by the name of their group, to be tested.
        clusters: How many groups to find; by default as many as part the classes best.
        images: The data set that the trace is of, for a contact sheet of the easiest and the
            hardest images; by default they are read from where the trace says that it is of.
        metrics: ``metrics.csv`` of the run that the network is of, for its gates over the epochs.
        formats: Of the figures: ``png``, ``svg`` and ``pdf``.
        seed: Of what is drawn for the tests.

    Returns:
        The files written, ``analysis.json`` the last, and what that holds (``findings``); where
        images are gone, or are no longer what they were, ``contact_sheet`` says so.

    Raises:
        UserError: The trace has no gates.

    Example:
        >>> import tempfile
        >>> files, _ = write_analysis(trace, tempfile.mkdtemp())
        >>> [path.name for path in files][:3]
        ['class_rates.csv', 'class_rates.png', 'class_rates.svg']
    """
    if not trace.gates:
        raise UserError("the network has no gates to analyse: convert it first")
    folder = Path(folder)
    by_class, by_gate = class_rates(trace), gate_rates(trace)
    blocks, costs, confidence = blocks_executed(trace), cost_table(trace), cost_by_confidence(trace)
    about = f"{trace.source}, {len(trace.images)} images, policy {trace.policy}"
    found = findings(trace, groups, clusters=clusters, seed=seed)
    (folder / "analysis.json").unlink(missing_ok=True)  # it is written last, and tells the whole

    def heatmap(kind: str) -> Figure:
        most = MOST_ROWS if kind == "png" else None
        return class_heatmap(by_class, by_gate, about, most_rows=most)

    written = write_figure(
        folder, "class_rates", class_table(trace), {k: heatmap(k) for k in formats}
    )
    for name, numbers, figure in (
        ("gate_rates", by_gate, gate_bars(by_gate, about)),
        ("blocks_executed", blocks, blocks_histogram(blocks, about)),
        ("costs", costs, cost_figure(trace, costs, confidence, about)),
    ):
        written += write_figure(folder, name, numbers, dict.fromkeys(formats, figure))
    written += write_figure(folder, "costs_by_confidence", confidence, {})
    chosen, sheet = extreme_images(trace), {}
    try:
        figure, gone = _contact_sheet(trace, chosen, images, about)
        sheet = dict.fromkeys(formats, figure)
    except UserError as error:
        gone = f"no contact sheet of images: {error}"
    if gone:
        found["contact_sheet"] = gone
    written += write_figure(folder, "extreme_images", chosen, sheet)
    if metrics is not None:
        drawn = dict.fromkeys(formats, gates_figure(metrics, "validation images, as calibrated"))
        written += write_figure(folder, "gates_in_training", epoch_table(metrics), drawn)
    write_json(folder / "analysis.json", found)
    written.append(folder / "analysis.json")
    remove_others(folder, [f"{name}.{kind}" for name in _FIGURES for kind in _KINDS], written)
    return written, found


def write_comparison(
    traces: Mapping[str, ExecutionTrace],
    folder: str | Path,
    *,
    formats: Sequence[str] = ("png", "svg"),
) -> tuple[list[Path], pd.DataFrame]:
    """Write how several traces compare, and their gates' rates, as tables and a figure.

    Args:
        traces: By name; the others are compared with the first.
        folder: Where to.
        formats: Of the figure.

    Returns:
        The files written, and the rows of ``compare_traces``.

    Raises:
        UserError: Two have other gates than each other.
    """
    folder = Path(folder)
    rows, gates = compare_traces(traces), compare_gates(traces)
    sources = dict.fromkeys(trace.source for trace in traces.values())
    figure = comparison_figure(rows, gates, ", ".join(sources))
    written = write_figure(folder, "comparison", rows, dict.fromkeys(formats, figure))
    return [*written, *write_figure(folder, "gates_compared", gates, {})], rows


def _contact_sheet(
    trace: ExecutionTrace, chosen: pd.DataFrame, images: ImageSet | None, about: str
) -> tuple[Figure, str]:
    """Return the figure, and what is to be said of pictures that are gone."""
    names = drawn_classes(chosen)
    shown = chosen[chosen["class"].isin(names)]
    files = shown["file"].tolist()
    if images is None:
        pictures, gone = read_pictures(image_reader(trace.source), files)
    else:
        indices = shown["index"].tolist()
        if len(images) != len(trace.images) or [*map(images.filename, indices)] != files:
            raise UserError(
                f"data {images.name} {images.split} has other images than the trace is of; give "
                "the data, --split and --limit that it was made with"
            )
        source, places = images.source, images.indices
        pictures, gone = read_pictures(lambda index: source.read(places[index])[0], indices)
    if all(picture is None for picture in pictures):
        raise UserError(gone)
    left_out = chosen["class"].nunique() - len(names)
    return contact_sheet(shown, pictures, about, left_out=left_out), gone


def write_figure(
    folder: Path, name: str, numbers: pd.DataFrame, figures: Mapping[str, Figure]
) -> list[Path]:
    """Write a table as CSV, and figures of it by their format, and return the files."""
    tables: dict[str, Any] = {"csv": numbers}
    written = []
    for kind, content in {**tables, **figures}.items():
        path = folder / f"{name}.{kind}"
        with replacing(path) as temporary:
            if kind == "csv":
                content.to_csv(temporary, index=False)
            else:
                content.savefig(temporary, format=kind)
        written.append(path)
    return written
