"""A captured training step does what the step does, on a GPU; skipped where there is none."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import convert, named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.gates import logistic_noise
from aigtool.models.files import Model
from aigtool.training.capture import WARM_UP, Captured
from aigtool.training.config import FinetuneConfig
from aigtool.training.loop import finetune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


def test_it_launches_what_it_recorded() -> None:
    """Python runs for the first calls and the recorded one, the graph for all after these."""
    ran = []

    def product(x: Tensor, y: Tensor) -> Tensor:
        ran.append(x.shape)
        return x * y

    compute = Captured(product, torch.device("cuda"))
    for number in range(WARM_UP + 4):
        for images in (3, 5):
            x = torch.full((images,), float(number), device="cuda")
            assert compute(x, x + 1).tolist() == [number * (number + 1)] * images
    assert len(ran) == 2 * (WARM_UP + 1)


def test_each_launch_draws_noise_anew() -> None:
    def noisy(x: Tensor, _: Tensor) -> Tensor:
        return logistic_noise(x)

    compute = Captured(noisy, torch.device("cuda"))
    x = torch.zeros(100, device="cuda")
    drawn = torch.stack([compute(x, x).clone() for _ in range(WARM_UP + 4)])
    assert (drawn.diff(dim=0) != 0).all()


def test_gradients_are_those_of_the_step(small_network: nn.Module) -> None:
    gated = convert(small_network).to("cuda").train()
    for _, gate in named_gates(gated):
        gate.noise.zero_()
    other = copy.deepcopy(gated)

    def adding(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def add(images: Tensor, labels: Tensor) -> Tensor:
            with recorded_decisions(network) as decisions:
                loss = nn.functional.cross_entropy(network(images), labels)
                loss = loss + torch.stack([d.scale.mean() for d in decisions.values()]).sum()
            loss.backward()
            return loss.detach()

        return add

    captured, plain = Captured(adding(gated), torch.device("cuda")), adding(other)
    for _ in range(WARM_UP + 4):
        images = torch.rand(4, 3, 16, 16, device="cuda")
        labels = torch.randint(3, (4,), device="cuda")
        for network in (gated, other):
            network.zero_grad(set_to_none=False)
        torch.testing.assert_close(captured(images, labels), plain(images, labels))
        for one, two in zip(gated.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gated.state_dict(), other.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_on_a_gpu_ends_as_one_on_the_cpu(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path, every: int
) -> None:
    """Without noise; over few steps, since rounding differs and grows as a run goes on."""
    config = FinetuneConfig(
        epochs=1, batch_size=2, noise_hold=0, noise_end=0, grad_accum_steps=every, lr=0.001
    )
    last = []
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model)
        result = finetune(copied, train, val, config, out=tmp_path / device, device=device)
        last.append(result.metrics[-1])
    for name in ("train_loss", "train_execution_rate", "train_argmax_rate", "train_top1"):
        assert last[1][name] == pytest.approx(last[0][name], rel=2e-2), name
