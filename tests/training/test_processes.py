"""Training in several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from aigtool.conversion import named_gates
from aigtool.errors import UserError
from aigtool.launch import place
from aigtool.models.description import Description
from aigtool.models.files import load_model, save_model
from aigtool.training.processes import Processes, launched
from tests.training.small import FILES, SPEC
from tests.training.together import CERTAIN, RANDOM, trained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(gated_network: nn.Module, image_folder: Path) -> Path:
    """A network whose gates differ from image to image, and its images."""
    for _, gate in named_gates(gated_network):
        nn.init.normal_(gate.fc2.weight)
        nn.init.zeros_(gate.fc2.bias)
    description = Description("cifar_resnet20", 3, input=SPEC)
    save_model(image_folder.parent / "model.safetensors", gated_network, description)
    return image_folder.parent


def test_two_processes_train_as_one_does(folder: Path) -> None:
    """What ``together.py`` checks holds, and what nothing random is in ends as in one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.training.together", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == str(folder / "command"), "one process tells"
    assert done.stderr.count("wrote ") == len(FILES)
    assert done.stderr.count("expected a batch size that is a multiple of 4") == 2
    assert "error in process 2 of 2: aigtool info in 2 processes: expected one" in done.stderr
    assert {path.name for path in (folder / "command").iterdir()} == FILES

    alone = trained(folder, "alone", CERTAIN)
    together = load_model(folder / "certain" / "best.safetensors").network.state_dict()
    for key, value in alone.model.network.state_dict().items():
        # Means over 24 images of what sampled gates before them let through.
        bound = 0.3 if key.endswith("expected_rate") else 1e-6
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=bound, msg=key)
    rates = [row["train_execution_rate"] for row in alone.metrics]
    assert all(0.2 < rate < 0.95 for rate in rates), "some blocks were skipped"
    rows = pd.read_csv(folder / "certain" / "metrics.csv").drop(columns="train_images_per_second")
    for row, other in zip(alone.metrics, rows.to_dict("records"), strict=True):
        assert other == pytest.approx({name: row[name] for name in other}, rel=1e-3, abs=1e-6)
    with pytest.raises(UserError, match="was started in processes: 2, not 1"):
        trained(folder, "whole", RANDOM, resume=True)


def test_processes_are_refused_what_they_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place() == (0, 1), "a cluster's, not a launcher's"
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert place() == (1, 4)
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    for device, expected in (
        ("mps", "device mps with 4 processes: expected cpu, or cuda"),
        ("cuda:0", "device cuda:0 with 4 processes: expected cpu, or cuda"),
        ("cuda", f"{torch.cuda.device_count()} GPUs are usable here; launch as many"),
    ):
        with pytest.raises(UserError, match=expected), launched(torch.device(device)):
            pass
    six = Processes(0, 6)
    for batch_size, repeats, least in ((32, 4, 24), (20, 2, 12), (4, 1, 12), (6, 1, 12)):
        with pytest.raises(UserError, match=f"multiple of {6 * repeats}, {least} at least"):
            six.check_batch(batch_size, repeats)
    six.check_batch(48, 4)
    six.check_batch(12, 1)
    with pytest.raises(UserError, match="11 training images in 6 processes: expected 12 at"):
        six.check_images(11)
    six.check_images(6, repeats=2)
