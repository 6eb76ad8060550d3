"""A run killed again and again ends as one that never was: ``python -m pytest -m kill``."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aigtool.cli.main import run
from aigtool.models.files import load_model

KILLS = 10
PATIENCE = 300.0


@pytest.mark.kill
def test_killed_at_random_moments_and_resumed(image_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "r20.safetensors"
    assert run(["convert", "cifar_resnet20", "--num-classes", "3", "--out", str(model)]) == 0
    command = ["finetune", str(model), "--data", str(image_folder), "--workers", "0"]
    command += ["--epochs", "60", "--batch-size", "4", "--model-ema-decay", "0.9"]
    assert run([*command, "--out", str(tmp_path / "whole")]) == 0

    draw = random.Random(0)
    out = tmp_path / "killed"
    last, best = out / "last.ckpt", out / "best.safetensors"
    resume = [*command, "--out", str(out)]
    epochs: list[int] = []
    for kill in range(KILLS):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen([sys.executable, "-m", "aigtool", *resume])
        deadline = time.monotonic() + PATIENCE
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.poll() is None, "it ended before it saved anything"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 5))
        assert process.poll() is None, f"it ended before kill {kill + 1}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        epochs.append(torch.load(last, weights_only=True)["epoch"])
        resume = ["finetune", "--resume", str(out), "--workers", "0"]
    assert len(set(epochs)) > KILLS / 2, epochs
    assert run(resume) == 0
    for name in (best.name, "dense.safetensors"):
        one, other = (load_model(tmp_path / folder / name) for folder in ("whole", "killed"))
        assert one.description == other.description
        state = other.network.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in one.network.state_dict().items())
