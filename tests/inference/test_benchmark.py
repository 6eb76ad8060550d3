"""What a benchmark says of engines whose times are known."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from aigtool.conversion import named_gates
from aigtool.data.images import open_images
from aigtool.data.loading import eval_transform
from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops, count_flops
from aigtool.inference import benchmark
from aigtool.inference.benchmark import Contest, Setting, draw_patterns, measure_all
from aigtool.inference.engines import ENGINES, TorchEngine, make_engines
from aigtool.inference.plots import bench_figure
from aigtool.models.files import Model
from tests.conftest import close
from tests.inference.test_exporting import differing, various

CPU = torch.device("cpu")


def setting(engine: Any = "skip", batch_size: int = 2) -> Setting:
    return Setting(engine, CPU, torch.float32, batch_size, threads=1)


@pytest.fixture
def model(gated_network: torch.nn.Module) -> Model:
    return differing(gated_network)


class Clock:
    """An engine that takes a millisecond, and what it is told to for each executed block."""

    now = 0.0

    def __init__(self, cost: float, waste: float = 0.0) -> None:
        self.cost, self.waste = cost, waste
        self.executed: Tensor | None = None

    def decide(self, executed: Tensor | None) -> None:
        self.executed = executed

    def decisions(self, pixels: Tensor) -> npt.NDArray[np.bool_]:
        raise NotImplementedError

    def __call__(self, _pixels: Tensor) -> None:
        share = 1.0 if self.executed is None else self.executed.float().mean().item()
        mixed = 0 < share < 1
        Clock.now += 1e-3 * (1 + self.cost * share + self.waste * mixed)


@pytest.mark.parametrize(("waste", "efficiency"), [(0.0, 1.0), (2.0, 0.5)])
def test_efficiency_is_ideal_over_measured(
    model: Model, monkeypatch: pytest.MonkeyPatch, waste: float, efficiency: float
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    engines = (Clock(2.0, waste), Clock(3.0))
    monkeypatch.setattr(benchmark, "make_engines", lambda *_: engines)
    blocks = tuple(BlockFlops(name, 0.5, True, 0.4, 0.01) for name in "ab")
    contest = Contest(model, NetworkFlops(1.0, 1, blocks), setting())
    half = np.array([[True, False], [False, True]])
    row = contest.measure([torch.zeros(2, 1)], [half, half], forced=True, rounds=3)
    # Closed takes 1, open 3, dense 4; half of the blocks ideally takes 2.
    assert (row.closed_ms, row.open_ms, row.dense_ms) == pytest.approx((1, 3, 4))
    assert row.gated_ms == pytest.approx(2 + waste)
    assert (row.ideal_ms, row.efficiency) == pytest.approx((2, efficiency))
    assert row.speedup == pytest.approx(4 / (2 + waste))
    assert row.open_over_dense == pytest.approx(0.75)
    assert (row.execution_rate, row.gated_flops_fraction) == pytest.approx((0.5, 0.5))
    assert row.flops_fraction == pytest.approx(1 + 0.02 - 0.4)


@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=[pytest.mark.slow] * (e == "compile")) for e in ENGINES]
)
def test_engines_do_what_they_are_told(model: Model, engine: Any) -> None:
    """Told decisions give what thresholds give, and the network's own come back."""
    gated, dense = make_engines(model, engine, CPU, torch.float32, 1)
    pixels = various(4)
    own = gated.decisions(pixels)
    assert 0.1 < own.mean() < 0.9
    [pattern] = draw_patterns(0.5, own.shape[1], batch_size=4, count=1, seed=0)
    gated.decide(torch.from_numpy(pattern))
    assert (gated.decisions(pixels) == pattern).all()
    gated.decide(None)
    assert (gated.decisions(pixels) == own).all()
    gated.decide(torch.ones(4, own.shape[1], dtype=torch.bool))
    opened, ungated = gated(pixels), dense(pixels)
    if engine == "onnx":
        opened, ungated = (
            torch.tensor(np.concatenate([g[0] for g in x])) for x in (opened, ungated)
        )
    assert close(opened, ungated)


def test_thresholds_are_those_of_the_model_in_every_type(model: Model) -> None:
    """An engine decides for itself by what the model says, before it was told anything too."""
    gated, _ = make_engines(model, "skip", CPU, torch.bfloat16, 1)
    assert isinstance(gated, TorchEngine)
    own = [gate.threshold for _, gate in named_gates(model.network)]
    assert all(torch.equal(a.threshold, b) for a, b in zip(gated.gates, own, strict=True))
    assert any(b != b.bfloat16() for b in own)


def test_a_row_a_setting_and_rate(model: Model) -> None:
    settings = [setting("eager", 1), setting("skip", 3)]
    before = [gate.threshold.clone() for _, gate in named_gates(model.network)]
    rows = list(measure_all(model, settings, rates=[0.0, 0.5, 1.0], patterns=2, rounds=1))
    assert [(row.engine, row.batch_size) for row in rows[::3]] == [("eager", 1), ("skip", 3)]
    assert [rows[0].gated_flops_fraction, rows[2].gated_flops_fraction] == [0.0, 1.0]
    assert all(row.dense_ms > 0 and row.patterns == 2 for row in rows)
    after = [gate.threshold for _, gate in named_gates(model.network)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for row in rows:  # what a reader divides is what stands beside it
        assert row.speedup == pytest.approx(row.dense_ms / row.gated_ms)
        assert row.efficiency == pytest.approx(row.ideal_ms / row.gated_ms)
    figure = bench_figure(rows, "a network")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 3"]


def test_real_images_decide_for_themselves(model: Model, image_folder: Path) -> None:
    transform = eval_transform(model.description.input)
    images = open_images(str(image_folder), "test", transform)
    [row] = measure_all(model, [setting(batch_size=5)], images=images, rounds=1)
    assert row.patterns == 2  # of 12 images two whole batches
    with pytest.raises(UserError, match="12 images: expected a batch of 13"):
        next(measure_all(model, [setting(batch_size=5), setting(batch_size=13)], images=images))


def test_a_network_without_gates_is_refused(small_network: torch.nn.Module) -> None:
    dense = differing(small_network)
    with pytest.raises(UserError, match="has no gates"):
        list(measure_all(dense, [setting()]))


def test_onnx_runs_on_the_cpu_in_float32_alone(model: Model) -> None:
    flops = count_flops(model.network, (3, 32, 32))
    half = Setting("onnx", CPU, torch.bfloat16, 1, 1)
    with pytest.raises(UserError, match="engine onnx on cpu with bfloat16"):
        Contest(model, flops, half)
    with pytest.raises(UserError, match="engine onnx on cpu with bfloat16"):
        next(measure_all(model, [setting(), half]))  # before the other is timed


def test_a_picture_tells_types_and_threads_apart(model: Model) -> None:
    [row] = measure_all(model, [setting(batch_size=1)], patterns=1, rounds=1)
    rows = [row, replace(row, threads=2), replace(row, engine="eager"), replace(row, batch_size=4)]
    figure = bench_figure(rows, "a network")
    labels = [axes.get_legend_handles_labels()[1] for axes in figure.axes]
    first = ["skip, threads: 1", "skip, threads: 2", "eager, threads: 1"]
    assert labels == [first, first[:1]]
    assert "cpu, float32;" in figure.get_suptitle()
