"""A program of torch.export runs without us, decides alike, and computes only what it must."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from aigtool.conversion import convert, named_gates
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.inference.answers import ServedNetwork
from aigtool.inference.programs import ProgramNetwork, export_program, saved
from aigtool.models.files import Model
from tests.conftest import close
from tests.inference.test_exporting import SIZE, differing, model_of, various


def asked(model: Model, pixels: Tensor) -> tuple[Any, Any]:
    flops = count_flops(model.network, SIZE)
    program = ProgramNetwork(export_program(model, flops), model.description, flops)
    return program(pixels), ServedNetwork(model)(pixels)


@pytest.mark.parametrize(
    ("name", "ungated"),
    [
        ("cifar_resnet20", "first:6"),
        pytest.param("resnetv2_50", (), marks=pytest.mark.slow),
        pytest.param("seresnext26t_32x4d", (), marks=pytest.mark.slow),
    ],
)
def test_it_answers_and_decides_as_the_network(
    name: str, ungated: str, lively: Callable[[str, int], nn.Module]
) -> None:
    network = convert(lively(name, 32), input_size=SIZE, ungated=ungated)
    ours, theirs = asked(differing(network), various(8))
    assert close(ours.logits, theirs.logits)
    assert torch.equal(ours.executed, theirs.executed)
    torch.testing.assert_close(ours.gate_logits, theirs.gate_logits, rtol=1e-4, atol=1e-4)
    assert 0.1 < ours.executed.float().mean() < 0.9


def test_a_network_without_gates_gives_logits_alone(shallow: nn.Module) -> None:
    ours, theirs = asked(model_of(shallow, ""), various(2))
    assert close(ours.logits, theirs.logits)
    assert ours.executed.shape == (2, 0)


def test_a_skipped_block_is_not_computed(shallow: nn.Module) -> None:
    """Of 7 convolutions there are two in each of three blocks; one skips its own."""
    model = differing(convert(shallow, input_size=SIZE))
    told = (-torch.inf, torch.inf, -torch.inf)
    for (_, gate), threshold in zip(named_gates(model.network), told, strict=True):
        gate.threshold.fill_(threshold)
    run = export_program(model, count_flops(model.network, SIZE)).module()
    with torch.no_grad(), profile() as profiled:
        run(various(1))
    # Its shortcuts pool and pad, so they have no convolutions.
    assert sum(event.name == "aten::conv2d" for event in profiled.events()) == 5


@pytest.mark.slow
def test_the_file_runs_without_aigtool(
    lively: Callable[[str, int], nn.Module], tmp_path: Path
) -> None:
    model = differing(convert(lively("cifar_resnet20", 32), input_size=SIZE))
    path, pixels = tmp_path / "network.pt2", various(1)
    flops = count_flops(model.network, SIZE)
    path.write_bytes(saved(export_program(model, flops), model.description, flops))
    torch.save(pixels, tmp_path / "pixels.pt")
    code = (
        "import json, sys, torch\n"
        "sys.modules['aigtool'] = None\n"
        f"run = torch.export.load({str(path)!r}).module()\n"
        f"logits, _, executed = run(torch.load({str(tmp_path / 'pixels.pt')!r}))\n"
        "print(json.dumps([logits.tolist(), executed.tolist()]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    logits, executed = json.loads(shown.stdout.splitlines()[-1])
    expected = ServedNetwork(model)(pixels)
    assert close(torch.tensor(logits), expected.logits)
    assert executed == expected.executed.tolist()


def test_gates_that_draw_are_refused(lively: Callable[[str, int], nn.Module]) -> None:
    model = differing(convert(lively("cifar_resnet20", 32), input_size=SIZE))
    drawing = Model(model.network, replace(model.description, policy="sampled"))
    with pytest.raises(UserError, match="gate policy sampled"):
        export_program(drawing, count_flops(model.network, SIZE))
