import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import named_gates, recorded_decisions
from aigtool.data.images import ImageSet, open_images
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.trace import ExecutionTrace, accuracy_difference, collect_trace, load_trace


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "test", to_tensor)


@pytest.fixture
def network(gated_network: nn.Module) -> PixelNetwork:
    for _, gate in named_gates(gated_network):
        nn.init.normal_(gate.fc2.weight, std=2.0)
    return PixelNetwork(gated_network, InputSpec.of(gated_network)).eval()


def collect(network: PixelNetwork, images: ImageSet, **options: object) -> ExecutionTrace:
    counts = count_flops(network.network, (3, 32, 32))
    return collect_trace(network, images, flops=counts, **options)  # type: ignore[arg-type]


def test_a_trace_is_what_the_network_did(network: PixelNetwork, images: ImageSet) -> None:
    trace = collect(network, images, batch_size=5)
    pixels = torch.stack([images[i][0] for i in range(len(images))])
    labels = torch.tensor([images[i][1] for i in range(len(images))])
    with torch.no_grad(), recorded_decisions(network) as decisions:
        logits = network(pixels)
    scales = torch.stack([d.scale for d in decisions.values()], 1)
    assert 0 < scales.mean() < 1
    np.testing.assert_array_equal(trace.executed, scales.numpy() > 0)
    np.testing.assert_allclose(
        trace.probability,
        torch.stack([d.logit.sigmoid() for d in decisions.values()], 1).numpy(),
        atol=1e-5,
    )
    np.testing.assert_array_equal(trace.images["prediction"], logits.argmax(1).numpy())
    np.testing.assert_array_equal(trace.images["label"], labels.numpy())
    np.testing.assert_allclose(
        trace.images["loss"], F.cross_entropy(logits, labels, reduction="none"), rtol=1e-3
    )
    assert trace.images["file"][0] == "test/blue/0.png"
    assert trace.correct.sum() == (logits.argmax(1) == labels).sum()
    np.testing.assert_array_equal(trace.images["label_rank"] == 0, trace.correct)


def test_summary_by_hand(small_trace: ExecutionTrace) -> None:
    summary = small_trace.summary()
    # Dense 1.0 with gates 0.002; every image skips "last" (0.4) but one.
    expected = {
        "correct": 3,
        "top1": 75.0,
        "top5": 100.0,
        "images": 4,
        "top1_stderr": 100 * np.sqrt(0.75 * 0.25 / 4),
        "execution_rate": 0.625,
        "gflops_executed": 1.002 - 0.3,
        "flops_fraction": 0.702,
        "flops_fraction_stdev": 0.4 * np.sqrt(0.25 * 0.75),
        "adaptive_gates": 1,
        "always_on_gates": 1,
        "always_off_gates": 0,
        "images_per_second": 8.0,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert summary["gates"] == [
        {"name": "first", "rate": 1.0, "target": None},
        {"name": "last", "rate": 0.25, "target": None},
    ]


def test_policies_give_the_rates_they_promise(network: PixelNetwork, images: ImageSet) -> None:
    opened = collect(network, images, policy="open").summary()
    closed = collect(network, images, policy="closed").summary()
    expected = collect(network, images, policy="expected").summary()
    assert (opened["execution_rate"], opened["flops_fraction"]) == (1.0, pytest.approx(1.0))
    assert closed["execution_rate"] == 0.0
    assert closed["flops_fraction"] < 0.1
    assert expected["execution_rate"] == 1.0
    assert [gate.policy for _, gate in named_gates(network)] == ["argmax"] * 9


def test_modules_keep_their_modes(network: PixelNetwork, images: ImageSet) -> None:
    network.train()
    network.network.bn1.eval()
    modes = [module.training for module in network.modules()]
    collect(network, images)
    assert [module.training for module in network.modules()] == modes


def test_save_and_load(network: PixelNetwork, images: ImageSet, tmp_path: Path) -> None:
    trace = collect(network, images)
    path = tmp_path / "trace.parquet"
    trace.save(path)
    again = load_trace(path)
    assert again.summary() == trace.summary()
    np.testing.assert_array_equal(again.probability, trace.probability)
    pd.testing.assert_frame_equal(again.images, trace.images)
    assert (again.classes, again.source) == (trace.classes, trace.source)

    plain = pd.read_parquet(path)
    assert list(plain)[:4] == ["index", "file", "label", "prediction"]
    assert plain["executed.layer2.0"].mean() == trace.executed[:, 3].mean()


def test_it_is_written_while_it_is_collected(
    network: PixelNetwork, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 2 of 12 images, in groups of 4 at least, are what is in memory at the end."""
    monkeypatch.setattr("aigtool.trace.GROUP", 4)
    path = tmp_path / "out" / "trace.parquet"
    written: list[int] = []

    def look(_images: int) -> None:
        temporary = [file for file in path.parent.glob("*") if file != path]
        written.append(sum(file.stat().st_size for file in temporary))

    trace = collect(network, images, batch_size=2, out=path, progress=look)
    assert written[1] == 0 < written[2] == written[3] < written[4]
    again = load_trace(path)
    assert again.summary() == trace.summary()
    np.testing.assert_array_equal(again.executed, trace.executed)
    pd.testing.assert_frame_equal(again.images, trace.images)
    assert pq.ParquetFile(path).num_row_groups == 3


def test_nothing_is_left_of_one_that_was_broken_off(
    network: PixelNetwork, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigtool.trace.GROUP", 2)
    path = tmp_path / "trace.parquet"

    def stop(_images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(network, images, batch_size=2, out=path, progress=stop)
    assert not [*tmp_path.rglob("*.parquet*")]


def test_a_network_without_gates_has_a_trace_too(
    small_network: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    trace = collect(PixelNetwork(small_network, InputSpec.of(small_network)), images)
    trace.save(tmp_path / "t.parquet")
    summary = load_trace(tmp_path / "t.parquet").summary()
    assert (summary["execution_rate"], summary["gates"]) == (None, [])
    assert summary["flops_fraction"] == pytest.approx(1.0)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no", "cut", "damaged", "foreign"])
def test_files_that_are_no_trace_are_told(
    content: bytes | str | None, tmp_path: Path, small_trace: ExecutionTrace
) -> None:
    path = tmp_path / "trace.parquet"
    if content == "cut":
        small_trace.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "damaged":
        small_trace.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + b"\xff" * 400 + whole[404:])
    elif content == "foreign":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match="no such file" if content is None else "no whole"):
        load_trace(path)


def test_differences_are_paired_by_image(small_trace: ExecutionTrace) -> None:
    """Right: image 0, 2, 3. Of two others, one is right on 0 and 1, one on none."""
    others = []
    for ranks in ([0, 0, 1, 1], [1, 1, 1, 1]):
        images = small_trace.images.assign(label_rank=ranks)
        others.append(dataclasses.replace(small_trace, images=images))
    difference, stderr = accuracy_difference(others, small_trace)
    per_image = 100 * np.array([0.5 - 1, 0.5 - 0, 0 - 1, 0 - 1])
    assert difference == pytest.approx(per_image.mean())
    assert stderr == pytest.approx(per_image.std() / 2)
    assert accuracy_difference([small_trace], small_trace) == (0.0, 0.0)
    moved = dataclasses.replace(small_trace, images=small_trace.images[::-1].reset_index())
    with pytest.raises(UserError, match="over different images"):
        accuracy_difference([moved], small_trace)
