import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from aigtool.analysis.figures import write_analysis
from aigtool.analysis.image_plots import drawn_classes, inference_graph
from aigtool.analysis.plots import class_heatmap
from aigtool.analysis.rates import class_rates, gate_rates
from aigtool.data.images import ImageSet
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace
from tests.analysis.test_rates import make_trace
from tests.marks import but_slow


@pytest.mark.parametrize(
    ("classes", "gates", "rate"),
    [
        *((2, 8, 0.5), (10, 27, 0.0)),
        pytest.param(100, 8, 0.5, marks=pytest.mark.slow),
        pytest.param(10, 54, 1.0, marks=pytest.mark.slow),
        pytest.param(10, 27, 0.5, marks=pytest.mark.slow),
        pytest.param(100, 150, 0.5, marks=pytest.mark.slow),
        pytest.param(1000, 54, 0.5, marks=pytest.mark.slow),
        pytest.param(1000, 8, 0.0005, marks=pytest.mark.slow),  # most classes are alike
    ],
)
def test_every_figure_is_drawn_without_a_warning(
    classes: int, gates: int, rate: float, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    count = max(200, classes)
    executed = generator.random((count, gates)) < rate
    labels = np.arange(count) % classes
    trace = make_trace(executed, labels, generator.integers(0, 2, count), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, _ = write_analysis(trace, tmp_path)
    figures = {"class_rates", "gate_rates", "blocks_executed", "costs"}
    assert {path.name for path in paths} == {
        *(f"{name}.{kind}" for name in figures for kind in ("csv", "png", "svg")),
        *("costs_by_confidence.csv", "extreme_images.csv", "analysis.json"),
    }
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 400
                _, saturation, _ = image.convert("RGB").convert("HSV").split()
                assert sum(saturation.histogram()[128:]) > 200  # data: all else is grey


def test_of_many_classes_each_row_is_a_branch_of_their_tree() -> None:
    rates = {0.0: 2, 0.5: 3, 1.0: 5}
    wanted = np.repeat(list(rates), list(rates.values()))[[7, 0, 3, 9, 1, 4, 8, 2, 5, 6]]
    labels = np.repeat(np.arange(10), 20)
    executed = np.tile(np.arange(20) / 20, 10) < wanted[labels]
    trace = make_trace(executed[:, None].repeat(4, 1), labels, np.zeros(200, int), 10)
    figure = class_heatmap(class_rates(trace), gate_rates(trace), most_rows=3)
    tree, rows = figure.axes[:2]
    names = [label.get_text() for label in rows.get_yticklabels()]
    shown = np.asarray(rows.images[0].get_array())[:, 0]
    assert {rate: int(name[-2]) for rate, name in zip(shown, names, strict=True)} == rates
    assert sum(len(links.get_paths()) for links in tree.collections) == 2


def test_names_are_no_formulas(tmp_path: Path) -> None:
    trace, images = many_images(3)
    names = ("$10-$20", "$a_$", "_{$x$}^")
    named = replace(trace, classes=names, source="a$b_$ val")
    paths, _ = write_analysis(named, tmp_path, images=images, formats=["svg"])
    assert "extreme_images.svg" in {path.name for path in paths}
    figure = class_heatmap(class_rates(named), gate_rates(named), "a$b_$")
    shown = figure.axes[1].get_yticklabels()
    assert {label.get_text() for label in shown} == {*names}
    assert not any(label.get_parse_math() for label in shown)


def test_one_image(tmp_path: Path) -> None:
    trace = make_trace(np.ones((1, 3), dtype=bool), np.array([1]), np.array([0]), 2)
    assert len(write_analysis(trace, tmp_path, formats=["pdf"])[0]) == 11
    assert (tmp_path / "costs.pdf").read_bytes().startswith(b"%PDF")


def test_csvs_hold_the_numbers_behind(small_trace: ExecutionTrace, tmp_path: Path) -> None:
    write_analysis(small_trace, tmp_path)
    frame = pd.read_csv(tmp_path / "class_rates.csv")
    assert frame["rate"].tolist() == class_rates(small_trace).to_numpy().ravel().tolist()
    assert pd.read_csv(tmp_path / "gate_rates.csv")["rate"].tolist() == [1.0, 0.25]


def test_a_trace_without_gates_is_told(tmp_path: Path) -> None:
    trace = make_trace(np.ones((2, 0), dtype=bool), np.array([0, 1]), np.array([0, 0]), 2)
    with pytest.raises(UserError, match="no gates to analyse"):
        write_analysis(trace, tmp_path)


def many_images(classes: int) -> tuple[ExecutionTrace, ImageSet]:
    generator = np.random.default_rng(0)
    count = 3 * classes
    executed = generator.random((count, 8)) < 0.5
    labels = np.arange(count) % classes
    trace = make_trace(executed, labels, generator.integers(0, 2, count), classes)
    pixels = np.zeros((12, 16, 3), np.uint8)

    class Made:
        def read(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(pixels + index % 200), int(labels[index])

        def filename(self, index: int) -> str:
            return str(index)

    images = ImageSet("made", "", trace.classes, None, Made(), range(count), np.asarray)
    return trace, images


@pytest.mark.parametrize("classes", but_slow([1, 2, 10, 30], [2, 30]))
def test_a_contact_sheet_is_drawn_of_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    trace, images = many_images(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, found = write_analysis(trace, tmp_path, images=images, formats=["png"])
    assert "contact_sheet" not in found
    assert tmp_path / "extreme_images.png" in paths
    chosen = pd.read_csv(tmp_path / "extreme_images.csv")
    assert len(chosen) == 3 * classes
    assert len(drawn_classes(chosen)) == min(classes, 20)


@pytest.mark.parametrize("blocks", [8, 54, 150])
def test_an_inference_graph_is_drawn_of_any_depth(blocks: int, tmp_path: Path) -> None:
    graph = pd.DataFrame(
        {
            "block": [f"layer{1 + 4 * n // blocks}.{n}" for n in range(blocks)],
            "gated": [n % 5 > 0 for n in range(blocks)],
            "executed": [n % 2 == 0 for n in range(blocks)],
            "probability": 0.5,
        }
    )
    figure = inference_graph(graph, np.zeros((32, 32, 3), np.uint8), "cat, 99 %")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "graph.png")
    boxes = [patch for patch in figure.axes[1].patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == blocks
