"""The commands that train, on small data, in one process: what they print, write and return."""

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from aigtool.cli.calibrate import REACHED
from aigtool.cli.main import run
from aigtool.cli.reporting import named
from aigtool.conversion import named_gates
from aigtool.models.files import load_model, save_model
from aigtool.models.zoo import create_network
from aigtool.trace import load_trace
from tests.cli.conftest import Command
from tests.training.small import FILES


def finetuned(aigtool: Command, model: Path, images: Path, out: Path, *more: str) -> dict[str, Any]:
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", *more, "--json"]
    result: dict[str, Any] = aigtool("finetune", model, "--data", images, "--out", out, *options)
    return result


@pytest.mark.usefixtures("unrendered")
def test_a_subset_of_the_classes_is_said_to_be_one(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    finetuned(aigtool, model, image_folder, tmp_path / "run")
    for image in (image_folder / "test" / "red").iterdir():
        image.unlink()
    best = tmp_path / "run" / "best.safetensors"
    shown = aigtool("evaluate", best, "--data", image_folder, "--split", "test")
    assert "a subset of the classes: 1 of 3" in shown.err
    assert "red" in shown.err
    mapping = tmp_path / "map.txt"
    mapping.write_text("blue\nred\n\n")
    mapped = ["--data", image_folder, "--class-map", mapping]
    shown = aigtool("evaluate", best, *mapped, "--split", "val")
    assert f"leaves out folders of {image_folder}: green" in shown.err


@pytest.mark.usefixtures("unrendered")
def test_a_new_classifier_has_no_teacher(
    aigtool: Command, image_folder: Path, tmp_path: Path
) -> None:
    weights, out = tmp_path / "w.pth", tmp_path / "m.safetensors"
    torch.save(create_network("cifar_resnet20").state_dict(), weights)
    told = aigtool(
        "convert", "cifar_resnet20", "--weights", weights, "--num-classes", "3", "--out", out
    )
    assert "the classifier 'linear' is new and untrained" in told.err
    description = load_model(out).description
    assert description.new_classifier
    assert description.after("calibrate").new_classifier
    run_folder = tmp_path / "run"
    finetuned(aigtool, out, image_folder, run_folder)
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["options"]["distill"] == 0
    assert not load_model(run_folder / "best.safetensors").description.new_classifier


def test_the_way_from_a_folder_to_an_attack(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    result = finetuned(aigtool, model, image_folder, tmp_path / "run")
    best = tmp_path / "run" / "best.safetensors"
    assert result["out"] == str(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES

    data = ["--data", image_folder, "--workers", "0"]
    trace = tmp_path / "trace.parquet"
    summary = aigtool("evaluate", best, *data, "--split", "test", "--out", trace, "--json")
    assert summary["images"] == 12
    assert summary["policy"] == "argmax"
    assert summary["reference"]["network"] == "dense"
    assert summary["difference"] == pytest.approx(summary["top1"] - summary["reference"]["top1"])
    assert summary["top1"] == pytest.approx(100 * summary["correct"] / 12)
    assert load_trace(trace).summary()["gates"] == summary["gates"]
    opened = aigtool("evaluate", best, *data, "--policy", "open", "--json")
    assert opened["execution_rate"] == 1.0
    dense = aigtool("evaluate", tmp_path / "run" / "dense.safetensors", *data, "--json")
    assert (dense["execution_rate"], dense["reference"]) == (None, None)
    shown = aigtool("evaluate", best, *data)
    assert "right" in shown.out
    assert "next:" in shown.err

    steps = ["--epsilons", "0,8/255", "--steps", "2"]
    told = aigtool("attack", best, *data, *steps, "--json")
    assert {row["network"] for row in told["rows"]} == {"gated", "dense"}
    assert {row["quality"] for row in told["rows"]} == {None, 75}
    assert "chroma subsampling 4:2:0" in told["jpeg"]
    assert {row["timed_images"] for row in told["compute"]} == {12}
    names = {path.name for path in (best.parent / "best-attack").iterdir()}
    tables = {"attack.csv", "gates.csv", "compute.csv", "attack.json"}
    assert names == tables | {"attack.png", "execution.png", "examples.png"}


@pytest.mark.usefixtures("unrendered")
def test_a_run_goes_on_where_it_was_stopped(
    aigtool: Command,
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C after a step: exit code 130, and --resume needs nothing but the folder."""
    finetuned(aigtool, model, image_folder, tmp_path / "whole", "--img-size", "16")
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--img-size", "16"]
    command = ["finetune", str(model), "--data", str(image_folder), *options]
    optimize, steps = torch.optim.SGD.step, []

    def press(*given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return optimize(*given, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", press)
    assert run([*command, "--out", str(tmp_path / "stopped")]) == 130
    assert len(steps) == 2
    assert (
        f"go on with: aigtool finetune --resume {tmp_path / 'stopped'}" in capsys.readouterr().err
    )

    monkeypatch.chdir(tmp_path)  # from anywhere
    other = tmp_path / "other.safetensors"
    aigtool("convert", "cifar_resnet20", "--num-classes", "3", "--out", other)
    resume = ["finetune", "--resume", str(tmp_path / "stopped")]
    for more, message in (
        (["--lr", "0.5"], "the run was started with --lr 0.005, not 0.5"),
        (["--img-size", "24"], "the run was started with --img-size 16, not 24"),
        ([str(other)], "the run was started with MODEL"),
        (["--out", "elsewhere"], "--out was given with --resume"),
    ):
        assert run([*resume, *more]) == 2
        assert message in capsys.readouterr().err
    shown = aigtool(*resume, "--epochs", "1")
    assert "thresholds did the rest, target rate 0.6" in shown.err
    assert "nothing was left to train" not in shown.err
    for name in ("best.safetensors", "dense.safetensors"):
        one, same = (load_model(tmp_path / run / name) for run in ("whole", "stopped"))
        assert one.description == same.description
        assert one.description.input.size == (3, 16, 16)
        state = same.network.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in one.network.state_dict().items())

    assert "was at its end: nothing was left to train" in aigtool(*resume).err

    beside = tmp_path / "dense.safetensors"
    aigtool("convert", other, "--strip", "--out", beside)
    assert run(resume) == 2
    assert "was started with dense_sha256 None" in capsys.readouterr().err
    beside.unlink()
    model.write_bytes(other.read_bytes())
    assert run(resume) == 2
    assert "was started with model_sha256" in capsys.readouterr().err


def test_calibrate_makes_a_model_file_a_budget(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    made = load_model(model)
    torch.manual_seed(0)
    for _, gate in named_gates(made.network):
        nn.init.normal_(gate.fc2.weight)
    save_model(model, made.network, made.description)
    data = ["--data", image_folder, "--workers", "0"]
    result = aigtool("calibrate", model, *data, "--target-flops", "0.5,0.9", "--json")
    assert result["reference"]["flops_fraction"] == 1.0
    for row, share in zip(result["rows"], (0.5, 0.9), strict=True):
        assert row["out"] == str(tmp_path / f"r20-flops{share}.safetensors")
        assert share - 0.1 < row["flops_fraction"] <= share
        again = aigtool("evaluate", row["out"], *data, "--split", "val", "--json")
        assert again["flops_fraction"] == pytest.approx(row["flops_fraction"], abs=0.01)
        history = load_model(row["out"]).description.history
        assert (history[-1]["step"], history[-1]["target_flops"]) == ("calibrate", share)
        assert history[-1]["images"] == 12
    shifts = [row["shifts"] for row in result["rows"]]
    assert sum(shifts[0]) > sum(shifts[1])
    for row, shift in zip(result["rows"], shifts, strict=True):
        stored = aigtool("info", row["out"], "--json")["gates"]
        assert [gate["threshold"] for gate in stored] == pytest.approx(shift, abs=1e-5)

    out = tmp_path / "one.safetensors"
    shown = aigtool("calibrate", model, *data, "--target-rate", "0.5", "--out", out)
    missed = load_model(out).description.history[-1]["execution_rate"] < 0.5 - REACHED
    assert ("is the nearest below that was found" in shown.err) is missed
    assert "target rate 0.5" in shown.out
    assert load_model(out).description.history[-1]["target_rate"] == 0.5


@pytest.mark.slow
def test_a_sweep_compares_its_runs_and_goes_on_where_it_stopped(
    aigtool: Command,
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = tmp_path / "smaller.safetensors"
    aigtool(
        "convert", "cifar_resnet20", "--num-classes", "3", "--out", tmp_path / "other.safetensors"
    )
    aigtool("convert", tmp_path / "other.safetensors", "--strip", "--out", small)
    out = tmp_path / "sweep"
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--out", out]
    command = ["sweep", model, "--data", image_folder, *options, "--compare", small]
    command += ["--img-size", "16"]
    first = aigtool(*command, "--target-flops", "0.6", "--seeds", "0,1", "--json")
    assert [row["network"] for row in first["runs"]] == ["open", "smaller", "gated", "gated"]
    assert first["runs"][0]["gflops_executed"] == first["runs"][1]["gflops_executed"]
    (target,) = first["targets"]
    runs = [row for row in first["runs"] if row["network"] == "gated"]
    assert target["runs"] == 2
    assert target["top1"] == pytest.approx(sum(row["top1"] for row in runs) / 2)
    assert all(row["flops_fraction"] <= 0.6 for row in runs)
    assert {path.name for path in out.iterdir()} == {
        *("flops0.6-seed0", "flops0.6-seed1"),
        *("runs.csv", "targets.csv", "sweep.json", "sweep.png"),
    }
    assert len(pd.read_csv(out / "runs.csv")) == 4

    weights = out / "flops0.6-seed0" / "best.safetensors"
    before = weights.stat().st_mtime_ns
    shown = aigtool(*command, "--target-flops", "0.6,0.4", "--seeds", "0", "--split", "test")
    assert weights.stat().st_mtime_ns == before
    assert (out / "flops0.4-seed0" / "best.safetensors").is_file()
    assert "flops 0.4" in shown.out
    # What was done before stays in the table, in order: one seed of 0.4, two of 0.6; two others.
    assert len(pd.read_csv(out / "runs.csv")) == 5
    assert pd.read_csv(out / "targets.csv")["target"].tolist() == [0.4, 0.6]
    assert pd.read_csv(out / "targets.csv")["runs"].tolist() == [1, 2]
    assert "images test, 12 images" in " ".join(shown.out.split())

    arguments = [*command, "--target-flops", "0.8,0.6", "--seeds", "0", "--momentum", "0.5"]
    assert run([str(argument) for argument in arguments]) == 2
    assert "was started with momentum 0.9, not 0.5" in capsys.readouterr().err
    assert not (out / "flops0.8-seed0").exists()


@pytest.mark.usefixtures("unrendered")
def test_a_sweep_has_a_dense_network_of_its_own_and_trains_nothing_twice(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    aigtool("convert", model, "--strip", "--out", tmp_path / "dense.safetensors")
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--seeds", "0"]
    command = ["sweep", model, "--data", image_folder, *options, "--target-rate", "0.6"]
    result = aigtool(*command, "--out", tmp_path / "sweep", "--json")
    assert [row["network"] for row in result["runs"]] == ["dense", "gated"]
    (weights,) = (tmp_path / "sweep").glob("*/best.safetensors")
    before = weights.stat().st_mtime_ns
    again = aigtool(*command, "--out", tmp_path / "sweep", "--json")
    assert weights.stat().st_mtime_ns == before
    assert [row["correct"] for row in again["runs"]] == [row["correct"] for row in result["runs"]]


@pytest.mark.slow
def test_a_sweep_of_the_baseline_says_that_it_is_one(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--seeds", "0"]
    command = ["sweep", model, "--data", image_folder, *options, "--target-rate", "0.6"]
    command += ["--baseline", "stochastic-depth", "--out", tmp_path / "sweep"]
    result = aigtool(*command, "--json")
    assert [row["network"] for row in result["runs"]] == ["open", "stochastic-depth"]
    shown = aigtool(*command)
    assert "paired with" in shown.out
    assert "open: points" in shown.out


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/small.safetensors", "b/other.safetensors"], ["small", "other"]),
        (["a/r20.pth", "b/r20.pth"], ["a/r20.pth", "b/r20.pth"]),
        (["dense.safetensors", "small.pth"], ["dense.safetensors", "small.pth"]),
    ],
)
def test_networks_compared_have_names_that_tell_them_apart(
    paths: list[str], names: list[str]
) -> None:
    assert [*named([Path(path) for path in paths], taken=("dense", "gated"))] == names
