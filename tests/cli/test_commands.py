"""Every command on small data, in one process: what it prints, writes and returns."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from rich.markup import render
from typer.main import get_command

from aigtool.cli.main import app, run
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import InputSpec
from aigtool.models.files import Model, load_model
from aigtool.models.override import InputOverride
from aigtool.models.zoo import create_network
from tests.cli.conftest import Command


def test_help_shows_all_that_it_says() -> None:
    """What stands in brackets is not taken for markup."""
    commands: dict[str, Any] = vars(get_command(app))["commands"]
    for name, command in commands.items():
        for text in (command.help, *(getattr(option, "help", None) for option in command.params)):
            shown = render(text or "").plain
            assert shown == (text or "").replace(r"\[", "["), name


def test_models(aigtool: Command) -> None:
    listed = aigtool("models", "cifar_*", "--json")["models"]
    assert [entry["name"] for entry in listed][:2] == ["cifar_resnet20", "cifar_resnet32"]
    assert "torchvision:resnet18" in aigtool("models", "torchvision:*18").out


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
    assert aigtool("models", "resnet18.a1_in1k").out == aigtool("models", "resnet18").out
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


@pytest.mark.slow
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


def test_a_network_sees_other_images_where_that_is_asked(
    aigtool: Command, image_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    resized = ["--img-size", "16", "--crop-pct", "0.5", "--interpolation", "bicubic"]
    normed = ["--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6"]
    aigtool("convert", "cifar_resnet20", "--num-classes", "3", *resized, *normed, "--out", path)
    model = load_model(path)
    assert model.description.input == InputSpec(
        (3, 16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.5, "center"
    )
    dense = tmp_path / "other.safetensors"
    aigtool("convert", path, "--strip", "--out", dense)
    told = ["--data", image_folder, "--dense", dense, "--json"]
    asked = ["--img-size", "24", "--crop-mode", "squash"]
    for size, more in ((16, []), (24, asked)):
        summary = aigtool("evaluate", path, *told, *more)
        expected = count_flops(model.network, (3, size, size)).gflops_dense
        assert summary["gflops_dense"] == summary["reference"]["gflops_dense"] == expected
    assert aigtool("flops", path, "--img-size", "24", "--json")["gflops_dense"] == expected


SHOWN = ["--crop-pct", "0.5", "--crop-mode", "border", "--interpolation", "box"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "r20.safetensors", "--data", "images", *SHOWN],
        ["analyze", "r20.safetensors", "other.safetensors", "--data", "images", *SHOWN],
        ["analyze", "r20.safetensors", "--image", "a.png", *SHOWN],
        ["attack", "r20.safetensors", "--data", "images", *SHOWN],
        ["bench", "r20.safetensors", "--data", "images", *SHOWN],
        ["bench", "cifar_resnet20"],
        ["calibrate", "r20.safetensors", "--data", "images", "--target-rate", "0.5", *SHOWN],
        ["convert", "cifar_resnet20", "--out", "new.safetensors", *SHOWN],
        ["evaluate", "r20.safetensors", "--data", "images", *SHOWN],
        ["export", "r20.safetensors", *SHOWN],
        ["finetune", "r20.safetensors", "--data", "images", *SHOWN],
        ["flops", "r20.safetensors"],
        ["predict", "r20.safetensors", "images", *SHOWN],
        ["sweep", "r20.safetensors", "--data", "images", "--target-rate", "0.5", *SHOWN],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_commands_go_by_what_was_asked_for(
    arguments: list[str],
    model: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first to touch the network as it is with these images says what they are."""

    class Told:
        def __init__(self, by: InputOverride) -> None:
            self.by = by

        def __getattr__(self, name: str) -> Any:
            raise UserError(f"{name} asked for, with {self.by.given}")

    shutil.copy(model, model.with_name("other.safetensors"))
    shutil.copy(next(image_folder.rglob("*.png")), model.with_name("a.png"))
    monkeypatch.setattr(Model, "overridden", lambda _, by: Told(by))
    monkeypatch.chdir(model.parent)
    assert run([*arguments, "--img-size", "16"]) == 2
    expected: dict[str, Any] = {"img_size": 16}
    if arguments[-1] == "box":
        expected |= {"crop_pct": 0.5, "crop_mode": "border", "interpolation": "box"}
    assert f"asked for, with {expected}" in capsys.readouterr().err


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
        pytest.param("resnet32-d509ac18.th", 474, marks=pytest.mark.slow),
        pytest.param("resnet44-014dd654.th", 468, marks=pytest.mark.slow),
        pytest.param("resnet56-4bfd9763.th", 470, marks=pytest.mark.slow),
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
