"""Every command on small data, in one process: what it prints, writes and returns."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
import yaml
from torch import nn

from aigtool.cli.calibrate import REACHED
from aigtool.cli.main import run
from aigtool.cli.sweep import named
from aigtool.conversion import named_gates
from aigtool.models.files import load_model, save_model
from aigtool.models.zoo import create_network
from aigtool.trace import load_trace

Command = Callable[..., Any]


@pytest.fixture
def aigtool(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must succeed; with ``--json`` return the one object on its stdout."""

    def command(*arguments: str | Path) -> Any:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in arguments else captured

    return command


@pytest.fixture
def model(aigtool: Command, tmp_path: Path) -> Path:
    path = tmp_path / "r20.safetensors"
    aigtool("convert", "cifar_resnet20", "--num-classes", "3", "--out", path)
    return path


def finetuned(aigtool: Command, model: Path, images: Path, out: Path) -> dict[str, Any]:
    options = ["--epochs", "2", "--batch-size", "8", "--workers", "0", "--json"]
    result: dict[str, Any] = aigtool("finetune", model, "--data", images, "--out", out, *options)
    return result


def test_models(aigtool: Command) -> None:
    listed = aigtool("models", "cifar_*", "--json")["models"]
    assert [entry["name"] for entry in listed][:2] == ["cifar_resnet20", "cifar_resnet32"]
    assert "torchvision:resnet18" in aigtool("models", "torchvision:*").out


def test_convert_says_what_it_wrote(aigtool: Command, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    result = aigtool("convert", "cifar_resnet20", "--out", out, "--gate-width", "4", "--json")
    assert (result["out"], result["gates"], result["gate_width"]) == (str(out), 9, 4)
    description = load_model(out).description
    assert description.history[0]["weights"] == "random"
    # Random weights have learned no classes, whatever the registry calls them.
    assert description.class_names is None


def test_models_tells_what_a_conversion_needs_to_know(aigtool: Command) -> None:
    (entry,) = aigtool("models", "resnet18", "--json")["models"]
    assert (entry["blocks"], entry["params"], entry["problem"]) == (8, 11_689_512, None)
    assert entry["input_size"] == [3, 224, 224]
    assert "a1_in1k" in entry["weights"]
    assert "a1_in1k" in aigtool("models", "resnet18").out
    header, row, *_ = aigtool("models", "cifar_*").out.splitlines()
    assert header.split() == ["name", "blocks", "parameters", "input", "converts"]
    assert row.split() == ["cifar_resnet20", "9", "269,722", "3x32x32", "yes"]


def test_convert_gates_the_blocks_that_were_asked_for(aigtool: Command, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    targets = "1,.8,.7,.6,.5,.4,.3,.2,.1"
    options = ["--ungated", "last,layer2.*", "--ungated", "first:2", "--targets", targets]
    result = aigtool("convert", "cifar_resnet20", "--out", out, *options, "--json")
    assert (result["gates"], result["blocks"]) == (3, 9)
    assert load_model(out).description.gated_blocks == {
        "layer1.2": 0.7,
        "layer3.0": 0.3,
        "layer3.1": 0.2,
    }
    about = aigtool("info", out, "--json")
    assert [row["gated"] for row in about["blocks"]] == [
        name in ("layer1.2", "layer3.0", "layer3.1") for name in BLOCKS
    ]
    assert about["blocks"][2]["stage"] == "layer1"
    lines = aigtool("info", out).out.splitlines()
    assert next(line for line in lines if "0.7" in line).split()[:4] == [
        "2",
        "yes",
        "0.7",
        "0.00478",
    ]


BLOCKS = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1, 2)]


def test_a_folder_with_a_slash_at_its_end_gives_its_name(
    aigtool: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = timm.create_model("resnet18", num_classes=3)
    folder = tmp_path / "own"
    timm.models.save_for_hf(source, folder, model_config={"num_classes": 3})
    assert aigtool("convert", "local-dir:own/", "--pretrained", "--json")["out"] == (
        "own.safetensors"
    )


def test_the_papers_schedule(aigtool: Command, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    result = aigtool("convert", "test_resnet", "--targets", "1,.5,.5,1", "--out", out, "--json")
    assert result["gates"] == 2
    options = ["--targets", "resnet50-eccv:0.6", "--out", out, "--force", "--json"]
    assert aigtool("convert", "resnet50", *options)["gates"] == 10


def test_strip_gives_the_original_back(aigtool: Command, tmp_path: Path) -> None:
    source = create_network("resnet18", num_classes=5)
    weights, gated = tmp_path / "w.pth", tmp_path / "gated.safetensors"
    torch.save({"state_dict": source.state_dict()}, weights)
    aigtool("convert", "resnet18", "--num-classes", "5", "--weights", weights, "--out", gated)
    result = aigtool("convert", gated, "--strip", "--json")
    dense = tmp_path / "gated-dense.safetensors"
    assert (result["out"], result["stripped"]) == (str(dense), 8)
    state = safetensors.torch.load_file(dense)
    fresh = timm.create_model("resnet18", num_classes=5)
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
    assert load_model(dense).description.gated_blocks == {}


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


def test_flops_and_info(aigtool: Command, model: Path) -> None:
    counts = aigtool("flops", model, "--json")
    assert set(counts) == {"gflops_dense", "params", "gate_gflops", "gate_params", "blocks"}
    assert [block["gated"] for block in counts["blocks"]] == [True] * 9
    assert {"name", "gflops", "gated"} <= set(counts["blocks"][0])
    about = aigtool("info", model, "--json")
    assert about["source"] == "cifar_resnet20"
    assert len(about["gates"]) == 9
    assert "layer1.0" in aigtool("flops", model).out
    last_line = aigtool("info", model).out.splitlines()[-1]
    assert last_line.split() == ["2", "yes", "-", "0.00473", "1,106"]


def test_the_way_from_a_folder_to_figures(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    result = finetuned(aigtool, model, image_folder, tmp_path / "run")
    best = tmp_path / "run" / "best.safetensors"
    assert result["out"] == str(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best.safetensors",
        "config.yaml",
        "dense.safetensors",
        "last.ckpt",
        "metrics.csv",
        "training.png",
    }

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
    alone = aigtool("attack", tmp_path / "run" / "dense.safetensors", *data, "--epsilons", "0")
    assert "gated" not in alone.out
    shown = aigtool("evaluate", best, *data)
    assert "right" in shown.out
    assert "next:" in shown.err

    aigtool("analyze", trace, "--out", tmp_path / "from-trace")
    aigtool("analyze", best, *data, "--split", "test", "--out", tmp_path / "from-model", "--json")
    for name in ("class_rates.csv", "gate_rates.csv", "blocks_executed.csv"):
        first, second = (tmp_path / kind / name for kind in ("from-trace", "from-model"))
        pd.testing.assert_frame_equal(pd.read_csv(first), pd.read_csv(second))

    rows = aigtool("attack", best, *data, "--epsilons", "0,8/255", "--json")["rows"]
    assert {row["network"] for row in rows} == {"gated", "dense"}
    assert {row["quality"] for row in rows} == {None, 75}
    assert (best.parent / "best-attack" / "attack.png").is_file()
    assert "JPEG 75" in aigtool("attack", best, *data, "--out", tmp_path / "again").out


def test_a_run_goes_on_where_it_was_stopped(
    aigtool: Command,
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C after a step: exit code 130, and --resume needs nothing but the folder."""
    finetuned(aigtool, model, image_folder, tmp_path / "whole")
    options = ["--epochs", "2", "--batch-size", "8", "--workers", "0"]
    command = ["finetune", str(model), "--data", str(image_folder), *options]
    optimize, steps = torch.optim.SGD.step, []

    def press(*given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return optimize(*given, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", press)
    assert run([*command, "--out", str(tmp_path / "stopped")]) == 130
    assert len(steps) == 4
    assert (
        f"go on with: aigtool finetune --resume {tmp_path / 'stopped'}" in capsys.readouterr().err
    )

    monkeypatch.chdir(tmp_path)  # from anywhere
    other = tmp_path / "other.safetensors"
    aigtool("convert", "cifar_resnet20", "--num-classes", "3", "--out", other)
    resume = ["finetune", "--resume", str(tmp_path / "stopped")]
    for more, message in (
        (["--lr", "0.5"], "the run was started with --lr 0.005, not 0.5"),
        ([str(other)], "the run was started with MODEL"),
        (["--out", "elsewhere"], "--out was given with --resume"),
    ):
        assert run([*resume, *more]) == 2
        assert message in capsys.readouterr().err
    shown = aigtool(*resume, "--epochs", "2")
    assert "thresholds did the rest, target rate 0.6" in shown.err
    for name in ("best.safetensors", "dense.safetensors"):
        one, same = (load_model(tmp_path / run / name) for run in ("whole", "stopped"))
        assert one.description == same.description
        state = same.network.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in one.network.state_dict().items())

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


def test_json_keys_that_others_build_on(aigtool: Command, model: Path, image_folder: Path) -> None:
    summary = aigtool("evaluate", model, "--data", image_folder, "--json")
    assert {
        "correct",
        "top1",
        "top5",
        "images",
        "top1_stderr",
        "policy",
        "execution_rate",
        "gflops_dense",
        "gflops_executed",
        "flops_fraction",
        "adaptive_gates",
        "images_per_second",
        "gates",
    } <= set(summary)
    assert set(summary["gates"][0]) == {"name", "rate", "target"}
    assert summary["reference"]["network"] == "open"


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


def test_held_out_images_that_the_weights_know_are_told(
    aigtool: Command,
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (image_folder / "val").rename(image_folder / "kept-away")
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0"]
    command = ["finetune", model, "--data", image_folder, *options, "--out"]
    shown = aigtool(*command, tmp_path / "a")
    assert "open: top-1" in shown.err
    assert "probably seen" not in shown.err
    monkeypatch.setattr("aigtool.cli.preparing.SEEN_LOSS", 1e9)
    shown = aigtool(*command, tmp_path / "b")
    assert "probably seen the images held out of train/" in shown.err


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
    first = aigtool(*command, "--target-flops", "0.6", "--seeds", "0,1", "--json")
    assert [row["network"] for row in first["runs"]] == ["open", "smaller", "gated", "gated"]
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
    shown = aigtool(*command, "--target-flops", "0.4,0.6", "--seeds", "0", "--split", "test")
    assert weights.stat().st_mtime_ns == before
    assert (out / "flops0.4-seed0" / "best.safetensors").is_file()
    assert "flops 0.4" in shown.out
    assert "images test, 12 images" in " ".join(shown.out.split())

    arguments = [*command, "--target-flops", "0.8,0.6", "--seeds", "0", "--momentum", "0.5"]
    assert run([str(argument) for argument in arguments]) == 2
    assert "was started with momentum 0.9, not 0.5" in capsys.readouterr().err
    assert not (out / "flops0.8-seed0").exists()


def test_a_sweep_compares_with_a_dense_network_of_its_own(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    aigtool("convert", model, "--strip", "--out", tmp_path / "dense.safetensors")
    options = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--seeds", "0"]
    command = ["sweep", model, "--data", image_folder, *options, "--target-rate", "0.6"]
    result = aigtool(*command, "--out", tmp_path / "sweep", "--json")
    assert [row["network"] for row in result["runs"]] == ["dense", "gated"]


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


def test_quiet_leaves_only_the_result(aigtool: Command, model: Path, image_folder: Path) -> None:
    shown = aigtool("evaluate", model, "--data", image_folder, "--policy", "open", "--quiet")
    assert shown.err == ""
    assert "top-1" in shown.out


def test_an_output_that_exists_is_replaced_with_force(aigtool: Command, model: Path) -> None:
    aigtool("convert", "cifar_resnet20", "--out", model, "--force")
    assert load_model(model).description.num_classes == 10


@pytest.mark.parametrize(
    ("weights", "correct"),
    [
        ("resnet20-12fca82f.th", 465),
        ("resnet32-d509ac18.th", 474),
        ("resnet44-014dd654.th", 468),
        ("resnet56-4bfd9763.th", 470),
    ],
)
def test_pretrained_networks_are_as_right_as_published(
    weights: str, correct: int, aigtool: Command, shared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    checkpoint = shared / "weights" / weights
    aigtool("convert", f"cifar_{weights[:8]}", "--weights", checkpoint, "--out", out)
    data = ["--data", shared / "data" / "cifar10", "--split", "test"]
    summary = aigtool("evaluate", out, *data, "--policy", "open", "--json")
    assert (summary["correct"], summary["images"]) == (correct, 510)


def test_an_exported_network_predicts_as_the_model_file(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    out, test = tmp_path / "r20.onnx", image_folder / "test"
    result = aigtool("export", model, "--out", out, "--limit", "4", "--json")
    assert result["check"]["data"] == "4 images of seeded noise"
    assert result["check"]["flips"] == 0
    assert (result["out"], result["bytes"]) == (str(out), out.stat().st_size)
    lines = [
        [json.loads(line) for line in aigtool("predict", *given).out.splitlines()]
        for given in ((model, test, "--format", "jsonl"), (out, test, "--format", "jsonl"))
    ]
    assert [len(made) for made in lines] == [12, 12]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["executed"] == theirs["executed"]
        assert (ours["file"], ours["label"]) == (theirs["file"], theirs["label"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    with_csv = aigtool("predict", model, test / "red", "--format", "csv").out.splitlines()
    assert with_csv[0] == "file,label,name,probability,blocks,gflops,milliseconds"
    assert len(with_csv) == 5
    header, row, *_ = aigtool("predict", model, test / "red").out.splitlines()
    assert header.split() == ["file", "class", "probability", "blocks", "GFLOPs", "ms"]
    assert "%" in row


def test_bench_writes_its_table_and_picture(aigtool: Command, model: Path, tmp_path: Path) -> None:
    options = ["--patterns", "2", "--rounds", "1", "--threads", "1", "--batch-size", "1,2"]
    result = aigtool("bench", model, *options, "--out", tmp_path / "b", "--json")
    assert [(row["engine"], row["batch_size"]) for row in result["rows"]] == [
        *(("eager", 1), ("eager", 2), ("skip", 1), ("skip", 2)),
    ]
    wanted = {
        *("engine", "device", "dtype", "batch_size", "threads", "patterns", "dense_ms"),
        *("dense_iqr_ms", "open_ms", "closed_ms", "gated_ms", "gated_iqr_ms", "ideal_ms"),
        *("efficiency", "speedup", "execution_rate", "flops_fraction", "gated_flops_fraction"),
    }
    assert wanted <= result["rows"][0].keys()
    assert len(pd.read_csv(tmp_path / "b" / "bench.csv")) == 4
    assert (tmp_path / "b" / "bench.png").stat().st_size > 10_000
    shown = aigtool("bench", "cifar_resnet20", *options, "--engine", "skip").out
    assert "threads 1, type float32" in shown.splitlines()[0]
