"""A command run in one process, and a model file for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from aigtool.cli.main import run

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


@pytest.fixture(scope="session")
def model_made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "r20.safetensors"
    torch.manual_seed(0)
    assert run(["convert", "cifar_resnet20", "--num-classes", "3", "--out", str(path)]) == 0
    return path


@pytest.fixture
def model(model_made_once: Path, tmp_path: Path) -> Path:
    """A gated network's file."""
    return Path(shutil.copy(model_made_once, tmp_path))


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures but leave empty files of them, for tests of something else: it takes long."""
    monkeypatch.setattr(Figure, "savefig", lambda _self, path, **_: Path(path).touch())
