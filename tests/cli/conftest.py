"""A command run in one process, and a model file for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def model(aigtool: Command, tmp_path: Path) -> Path:
    path = tmp_path / "r20.safetensors"
    aigtool("convert", "cifar_resnet20", "--num-classes", "3", "--out", path)
    return path
