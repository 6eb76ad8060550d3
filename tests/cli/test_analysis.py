"""``aigtool analyze``, in one process: what it prints, writes and returns."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aigtool.cli.main import run
from tests.cli.conftest import Command


@pytest.fixture
def data(image_folder: Path) -> list[str]:
    return ["--data", str(image_folder), "--split", "test", "--workers", "0"]


@pytest.fixture
def trace(aigtool: Command, model: Path, data: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "trace.parquet"
    aigtool("evaluate", model, *data, "--out", path, "--quiet")
    return path


@pytest.mark.usefixtures("unrendered")
def test_a_trace_and_its_model_say_the_same(
    aigtool: Command, model: Path, trace: Path, data: list[str], tmp_path: Path
) -> None:
    groups = tmp_path / "groups.yaml"
    groups.write_text("warm: [red]\ncold: [blue, green]\n")
    told = aigtool("analyze", trace, "--groups", groups, "--out", tmp_path / "from-trace").out
    assert "given groups" in told
    found = aigtool("analyze", model, *data, "--out", tmp_path / "from-model", "--json")
    assert found["found_groups"]["least_p"] == 1 / 200
    assert "given_groups" not in found
    assert str(tmp_path / "from-model" / "extreme_images.png") in found["out"]
    for name in ("class_rates", "gate_rates", "blocks_executed", "costs", "extreme_images"):
        tables = (tmp_path / kind / f"{name}.csv" for kind in ("from-trace", "from-model"))
        first, second = map(pd.read_csv, tables)
        pd.testing.assert_frame_equal(first, second)


@pytest.mark.usefixtures("unrendered")
def test_images_that_are_gone_cost_a_trace_its_contact_sheet_alone(
    aigtool: Command, trace: Path, data: list[str], image_folder: Path, tmp_path: Path
) -> None:
    there = aigtool("analyze", trace, *data, "--format", "png", "--out", tmp_path / "there")
    assert "warning" not in there.err
    assert "next:" not in there.err  # nothing but analyze takes a trace
    assert (tmp_path / "there" / "extreme_images.png").is_file()
    (image_folder / "test" / "red" / "0.png").write_bytes(b"no image")
    broken = aigtool("analyze", trace, *data, "--format", "png", "--out", tmp_path / "broken")
    assert "1 of 12 pictures is gone: " in broken.err
    assert "0.png cannot be read" in broken.err
    assert (tmp_path / "broken" / "extreme_images.png").is_file()
    shutil.rmtree(image_folder / "test" / "red")
    to_gone = ["--format", "svg", "--out", tmp_path / "gone", "--json"]
    gone = aigtool("analyze", trace, *data, *to_gone)
    assert "has other images than the trace is of" in gone["contact_sheet"]
    assert not (tmp_path / "gone" / "extreme_images.svg").exists()
    assert (tmp_path / "gone" / "costs.svg").is_file()
    shutil.rmtree(image_folder)
    nowhere = aigtool("analyze", trace, *data, *to_gone, "--force")
    assert "no contact sheet of images: data " in nowhere["contact_sheet"]


@pytest.mark.usefixtures("unrendered")
def test_a_trace_knows_where_its_images_are(aigtool: Command, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    aigtool("analyze", trace, "--format", "png,svg", "--out", out)
    assert (out / "extreme_images.svg").is_file()
    aigtool("analyze", trace, "--format", "png", "--out", out, "--force")
    assert (out / "extreme_images.png").is_file()
    assert [*out.glob("*.svg")] == []  # nothing is left of the run before


def test_the_blocks_of_one_image_are_drawn(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    image = next((image_folder / "test" / "blue").iterdir())
    drawn = aigtool("analyze", model, "--image", image, "--out", tmp_path / "one", "--json")
    assert [block["block"] for block in drawn["blocks"]][:2] == ["layer1.0", "layer1.1"]
    assert all(block["executed"] for block in drawn["blocks"])
    assert drawn["gflops"] == pytest.approx(0.0409, abs=2e-4)
    for kind in ("png", "svg", "csv"):
        assert (tmp_path / "one" / f"{image.stem}-blocks.{kind}").stat().st_size > 100
    command = ["analyze", str(model), "--image", str(image), "--out", str(tmp_path / "one")]
    assert run(command) == 2
    told = aigtool(*command, "--force")
    assert "blocks 9 of 9" in " ".join(told.out.split())


def test_several_are_compared_with_the_first(
    aigtool: Command, model: Path, trace: Path, data: list[str], tmp_path: Path
) -> None:
    command = ["analyze", trace, model, *data, "--out", tmp_path / "both"]
    rows = aigtool(*command, "--json")["rows"]
    assert [row["trace"] for row in rows] == ["trace", "r20"]
    assert (rows[1]["difference"], rows[1]["gate_agreement"]) == (0, 1)
    both = aigtool(*command, "--force", "--format", "png")
    assert "decisions" in both.out
    assert "nothing is paired" not in both.err
    few = [*command, "--limit", "5", "--force", "--format", "png"]
    assert "r20: not of the same images as trace" in aigtool(*few).err


def test_a_run_shows_its_gates_in_training(
    aigtool: Command, model: Path, image_folder: Path, data: list[str], tmp_path: Path
) -> None:
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--out", tmp_path / "run"]
    aigtool("finetune", model, "--data", image_folder, *options)
    best = tmp_path / "run" / "best.safetensors"
    found = aigtool("analyze", best, *data, "--format", "png", "--json")
    drawn = tmp_path / "run" / "best-analysis" / "gates_in_training"
    assert str(drawn.with_suffix(".png")) in found["out"]
    table = pd.read_csv(drawn.with_suffix(".csv"))
    assert (len(table), table["epoch"].tolist()) == (9, [1] * 9)
    np.testing.assert_allclose(table["rate"], table["executed"] / table["images"], atol=1e-6)
    assert table["images"].eq(12).all()
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("val_images", "images"))
    found = aigtool("analyze", best, *data, "--format", "png", "--force")
    assert "no figure of gates in training" in " ".join(found.err.split())
    assert not drawn.with_suffix(".csv").exists()
