"""What a user gets wrong is one line, exit code 2, no traceback, and nothing written."""

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aigtool.cli.main import run
from aigtool.conversion import convert
from aigtool.models.description import Description, InputSpec
from aigtool.models.files import save_model
from aigtool.models.zoo import create_network
from tests.cli.wrong_inputs import CASES, EVALUATE, FINETUNE


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.fixture(scope="module")
def workplace_made_once(images_made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(made)
        shutil.copytree(images_made_once, "images")
        _put_in_place()
    return made


def _put_in_place() -> None:
    torch.manual_seed(0)
    network = create_network("cifar_resnet20", num_classes=3)
    names = ("blue", "green", "red")
    spec = InputSpec.of(network)
    torch.save(network.state_dict(), "three.th")
    save_model("dense.st", network, Description("cifar_resnet20", 3, names, spec))
    save_model("m.safetensors", convert(network), Description("cifar_resnet20", 3, names, spec))
    ten = Description("cifar_resnet20", 10, None, spec)
    save_model("ten.st", create_network("cifar_resnet20"), ten)
    Path("empty.th").touch()
    Path("text.th").write_text("no checkpoint")
    Path("code.th").write_bytes(pickle.dumps(Malicious()))
    torch.save(create_network("cifar_resnet32").state_dict(), "r32.th")
    Path("cut.th").write_bytes(Path("three.th").read_bytes()[:-5000])
    Path("e.onnx").write_text("no model")
    Path("e.pt2").write_text("no program")
    Path("e.parquet").write_text("no trace")
    Path("nothing").mkdir()
    for folder in ("one/only", "others/cat", "others/dog", "broken/blue", "broken/red"):
        Path(folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(f"{folder}/a.png")
    Path("broken/red/b.png").write_bytes(b"no image")
    shutil.copytree("images", "unvalidated")
    shutil.rmtree("unvalidated/val")
    Path("run").mkdir()
    shutil.copy("m.safetensors", "run/best.st")
    Path("taken").mkdir()
    Path("taken/file").touch()


@pytest.fixture
def workplace(workplace_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of everything that can be wrong."""
    shutil.copytree(workplace_made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_one_line_and_nothing_written(
    arguments: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    code = run(arguments)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert captured.err.splitlines()[-1] == lines[0]
    assert message in lines[0]
    assert "Traceback" not in captured.err
    # Training is refused before the images are read.
    assert "on the validation images" not in captured.err
    assert captured.out == ""
    after = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    assert after == before


@pytest.mark.usefixtures("workplace")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_no_gpu(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*EVALUATE, "images", "--device", device]) == 2
    assert "0 CUDA GPUs are usable here" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["export", "m.safetensors", "--no-check"], "onnx"),
        (["export", "m.safetensors", "--no-check"], "onnxscript"),
        (["export", "nowhere.safetensors"], "onnxruntime"),
        (["bench", "m.safetensors", "--engine", "onnx", "--patterns", "1"], "onnxruntime"),
        (["predict", "e.onnx", "images/test/red"], "onnxruntime"),
    ],
)
def test_a_package_that_is_not_installed_names_the_extra(
    arguments: list[str],
    package: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    before = {*Path().rglob("*")}
    assert run(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert package in last
    assert "pip install 'aigtool[onnx]'" in last
    assert {*Path().rglob("*")} == before


@pytest.mark.usefixtures("workplace")
def test_a_loss_that_is_not_finite_is_exit_code_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*FINETUNE, "--lr", "1e30", "--epochs", "1", "--batch-size", "4"]) == 3
    assert "epoch 1, step" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_ctrl_c_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aigtool.cli.opening.collect_trace", interrupt)
    assert run([*EVALUATE, "images"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.usefixtures("workplace")
def test_a_defect_of_ours_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("aigtool.cli.opening.collect_trace", fail)
    with pytest.raises(RuntimeError, match="ours"):
        run([*EVALUATE, "images"])


@pytest.mark.usefixtures("workplace")
def test_debug_shows_where_an_error_came_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["info", "no.safetensors", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
