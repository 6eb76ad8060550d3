"""What two processes do together.

torchrun --nproc-per-node 2 -m tests.training.together FOLDER

FOLDER holds ``model.safetensors`` and ``images/``; what each process finds wrong, it raises.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from aigtool.cli.main import run
from aigtool.data.images import open_images
from aigtool.errors import UserError
from aigtool.models.files import load_model
from aigtool.training.config import FinetuneConfig
from aigtool.training.loop import FinetuneResult, finetune
from aigtool.training.processes import Processes, launched
from aigtool.training.trainer import Trainer
from tests.training.small import FAST

State = dict[str, Any]

RANDOM = replace(FAST, epochs=2, aug_repeats=2, mixup=0.2, model_ema_decay=0.9)
"""With noise, mixed images, norms that learn and averaged weights."""
CERTAIN = replace(
    FAST,
    epochs=2,
    batch_size=12,
    grad_accum_steps=2,
    clip_grad=1.0,
    band=1.0,
    norm_statistics="kept",
    noise_hold=0.0,
    noise_end=0.0,
    hints=0.0,
)
"""Nothing in it is random but for the order of images, or taken from a part of a minibatch."""


def trained(folder: Path, name: str, config: FinetuneConfig, **options: bool) -> FinetuneResult:
    """Train the folder's network on its images."""
    images = str(folder / "images")
    train, val = (open_images(images, split, to_tensor) for split in ("train", "val"))
    if os.environ.get("RANK") == "1" and name == "stopped" and not options:
        read = iter(range(30))

        def counting(image: object) -> Tensor:
            if next(read, 0) == 29:
                os.kill(os.getpid(), signal.SIGINT)
            pixels: Tensor = to_tensor(image)
            return pixels

        train = replace(train, transform=counting)
    model = load_model(folder / "model.safetensors")
    return finetune(model, train, val, config, out=folder / name, **options)


def check_parts(processes: Processes) -> None:
    """What is computed of parts is what is computed of all, forwards and backwards."""
    torch.manual_seed(0)
    images, weights = torch.randn(8, 4), torch.randn(8, 4)
    norm, shared = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    whole = images.clone().requires_grad_()
    (norm(whole) * weights).sum().backward()

    part = processes.own(images).clone().requires_grad_()
    with processes.sharing([shared]):
        normalised = shared(part)
        shared.eval()
        assert len(shared(part)) == 4, "in evaluation each is for itself"
    (normalised * processes.own(weights)).sum().backward()
    assert whole.grad is not None
    assert part.grad is not None
    torch.testing.assert_close(part.grad, processes.own(whole.grad))
    torch.testing.assert_close(shared.running_mean, norm.running_mean)
    torch.testing.assert_close(shared.running_var, norm.running_var)
    for mine, of_all in zip(shared.parameters(), norm.parameters(), strict=True):
        assert mine.grad is not None
        assert of_all.grad is not None
        mine.grad *= processes.count  # a mean is what comes out
    processes.average_gradients(shared)
    for mine, of_all in zip(shared.parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, of_all.grad)


def check_agreement(processes: Processes) -> None:
    """What one has or finds, all know."""
    first = processes.is_first
    assert processes.any(first, False, not first) == (True, False, True)
    assert processes.of_all(processes.rank) == [0, 1]
    assert processes.by_first(lambda: processes.rank) == 0

    def fail() -> None:
        raise UserError("no room")

    with suppress(UserError):
        processes.by_first(fail)
        raise AssertionError("the others were not told")
    network = nn.Linear(2, 2)
    processes.spread(network)
    heard = processes.by_first(network.weight.detach)
    assert torch.equal(network.weight, heard)
    if first:
        network(torch.ones(1, 2)).sum().backward()
    processes.average_gradients(network)
    assert network.weight.grad is not None
    assert network.weight.grad.eq(0.5).all(), "one without a gradient counts as zero"


def agreeing(state: Callable[[Trainer], State], processes: Processes) -> Callable[[Trainer], State]:
    """Let what a process saves be that of the other one, but for its generators."""

    def compared(self: Trainer) -> State:
        mine = state(self)
        for part in ("network", "objective", "average"):
            sums = [value.double().sum().item() for value in mine[part].values()]
            assert processes.of_all(sums) == [sums, sums], part
        assert len({rng.sum().item() for rng, _ in mine["generators"]}) == 2
        return mine

    return compared


def main(folder: Path) -> None:
    """Check the parts, train by the command line and by the library, stop and go on."""
    command = ["finetune", str(folder / "model.safetensors"), "--data", str(folder / "images")]
    command += ["--epochs", "1", "--batch-size", "8", "--json", "--out", str(folder / "command")]
    assert run([*command[:-1], str(folder / "odd"), "--batch-size", "6"]) == 2
    assert run(["info", str(folder / "model.safetensors")]) == 2
    assert run(command) == 0
    with launched(torch.device("cpu")) as processes:
        check_parts(processes)
        check_agreement(processes)
        trained(folder, "certain", CERTAIN)
        Trainer.state = agreeing(Trainer.state, processes)  # type: ignore[method-assign]
        whole = trained(folder, "whole", RANDOM)
        with suppress(KeyboardInterrupt):
            trained(folder, "stopped", RANDOM)
            raise AssertionError("Ctrl-C in one process stops all")
        resumed = trained(folder, "stopped", RANDOM, resume=True)
        state = resumed.model.network.state_dict()
        for key, value in whole.model.network.state_dict().items():
            assert torch.equal(value, state[key]), key


if __name__ == "__main__":
    main(Path(sys.argv[1]))
