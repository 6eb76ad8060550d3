"""Files become predictions as a stream, the same as evaluate's trace."""

import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from aigtool.data.images import open_images
from aigtool.data.loading import eval_transform
from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.inference.answers import Answers, ServedNetwork
from aigtool.inference.prediction import find_images, predict
from aigtool.models.description import Description, InputSpec, PixelNetwork
from aigtool.trace import collect_trace
from tests.inference.test_exporting import differing


def refuse(problem: str) -> None:
    raise AssertionError(problem)


def test_they_equal_the_trace_of_evaluate(
    gated_network: torch.nn.Module, image_folder: Path
) -> None:
    model = differing(gated_network)
    spec, names = model.description.input, ("blue", "green", "red")
    network = ServedNetwork(model)
    images = open_images(str(image_folder), "test", eval_transform(spec), names)
    trace = collect_trace(PixelNetwork(model.network, spec), images, flops=network.flops)
    files = [str(image_folder / name) for name in trace.images["file"]]
    made = list(
        predict(network, files, eval_transform(spec), batch_size=5, workers=2, unreadable=refuse)
    )
    assert [p.file for p in made] == files
    assert [p.label for p in made] == trace.images["prediction"].tolist()
    assert [p.name for p in made] == ["abc"[p.label] for p in made]
    assert [p.executed for p in made] == [tuple(row) for row in trace.executed.tolist()]
    assert [p.blocks for p in made] == trace.executed.sum(1).tolist()
    assert [p.gflops for p in made] == pytest.approx(trace.gflops)
    assert [p.probability for p in made] == pytest.approx(trace.images["confidence"], abs=1e-5)
    assert all(p.milliseconds > 0 for p in made)


def test_every_way_to_name_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "b/page.pdf", "a/3.png", "[x].png", "4.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    found = list(find_images(["b", "*/3.*", "[x].png", "-", "none.png"], ["4.png\n", "\n"]))
    assert found == ["b/1.JPG", "b/2.png", "a/3.png", "[x].png", "4.png", "none.png"]
    everything = ["4.png", "[x].png", "a/3.png", "b/1.JPG", "b/2.png"]
    assert list(find_images(["."])) == everything
    Path("empty").mkdir()
    assert list(find_images([""])) == [""]  # a name like any other, that no file has
    for given, problem in (("empty", "folder empty has no images"), ("*.gif", "no file matches")):
        with pytest.raises(UserError, match=problem):
            find_images(["b", given])  # before any is read


class Constant:
    """Answers at once, so that all there is to measure is the way of the images."""

    description = Description("none", 2, None, InputSpec(size=(3, 8, 8)))
    flops = NetworkFlops(1.0, 1, (BlockFlops("only", 1.0, True, 0.5),))

    def __call__(self, pixels: Tensor) -> Answers:
        count = len(pixels)
        return Answers(torch.zeros(count, 2), torch.ones(count, 1), torch.ones(count, 1).bool())


def test_a_stream_of_images_needs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (8, 8)).save(path)
    pixels = torch.zeros(3, 8, 8)

    def names() -> Iterator[str]:
        for _ in range(6000):
            yield str(path)

    made = predict(Constant(), names(), lambda _: pixels, batch_size=32, unreadable=refuse)
    tracemalloc.start()
    assert len(list(islice(made, 1000))) == 1000
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert sum(1 for _ in islice(made, 5000)) == 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 1e6  # a batch and its images read ahead, not what was given


def test_what_cannot_be_read_is_told_and_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    problems: list[str] = []
    files = [str(tmp_path / name) for name in ("bad.png", "good.png", "none.png", "good.png")]
    transform = eval_transform(Constant.description.input)
    made = list(predict(Constant(), files, transform, unreadable=problems.append))
    assert [Path(p.file).name for p in made] == ["good.png", "good.png"]
    assert ["bad.png" in problems[0], "none.png" in problems[1]] == [True, True]
