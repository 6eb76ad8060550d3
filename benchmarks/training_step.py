"""A training step of the gated network over one of the dense network, side by side.

Both networks train in one process, step by step in turn, without distillation; a row gives medians,
and the quartiles of the ratio.
Batch norms of both go by the statistics they came with, as fine-tuning keeps them, or by those of
minibatches. Gates are new ones, which execute 0.87 of their blocks, or begin at another rate. All
learning rates are zero, which costs a step nothing and keeps gates there.

python benchmarks/training_step.py [--rate 0.6] [--norm-statistics batch] [--device cuda]
    [--dtype bfloat16] [--compile]
"""

import argparse
import copy
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import get_args

import torch
from torch import Tensor, nn

import aigtool
from aigtool.training.capture import Captured
from aigtool.training.compiling import CompiledBranches
from aigtool.training.config import FinetuneConfig, NormStatistics
from aigtool.training.objective import Objective
from aigtool.training.optimization import zero_gradients
from aigtool.training.trainer import batch_norms

CASES = (
    ("resnet50", (3, 224, 224), 16),
    ("cifar_resnet56", (3, 32, 32), 128),
    ("cifar_resnet110", (3, 32, 32), 128),
)
IMAGES = 50_000
"""Of the data set, as far as the loss asks."""
CLASSES = 10
"""That its labels name."""
WARM_UP, REPEATS = 6, 25


def stepper(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    decisions: dict[str, aigtool.Decision],
    dtype: torch.dtype | None,
    compiled: bool,
) -> Callable[[], None]:
    """Return a function that takes one training step; the network writes to ``decisions``."""
    images, labels = batch
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    objective = Objective(
        FinetuneConfig(distill=0.0, hints=0.0).completed(False, True, False),
        dict(aigtool.named_gates(network)),
        aigtool.count_flops(network, tuple(images.shape[1:])),
        None,
        IMAGES,
        classes=CLASSES,
    ).to(images.device)

    objective.advance(0.5)
    run = torch.compile(network) if compiled else network
    branches = CompiledBranches(network) if compiled and images.is_cuda else None
    if branches:
        objective.gate_terms = torch.compile(objective.gate_terms, dynamic=False)

    def gradient(images: Tensor, labels: Tensor) -> Tensor:
        with (
            torch.autocast(images.device.type, dtype, enabled=dtype is not None),
            branches.in_place() if branches else nullcontext(),
        ):
            terms = objective(images, labels, run(images), decisions)
        objective.backward(terms, torch.ones_like(terms["task_loss"]))
        return terms["loss"].detach()

    add_gradient = Captured(gradient, images.device) if images.is_cuda else gradient

    def step() -> None:
        add_gradient(images, labels)
        optimizer.step()
        if images.is_cuda:
            zero_gradients(optimizer)
            torch.cuda.synchronize()
        else:
            optimizer.zero_grad()

    return step


def begin_at(network: nn.Module, rate: float) -> None:
    """Let new gates execute each block with a probability."""
    half = math.log(rate / (1 - rate)) / 2
    for _, gate in aigtool.named_gates(network):
        with torch.no_grad():
            gate.fc2.bias.copy_(torch.tensor([-half, half]))


def main() -> None:
    """Print a row a network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, help="at which gates begin")
    parser.add_argument("--norm-statistics", choices=get_args(NormStatistics), default="kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    where = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(
        f"{where}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {options.dtype or 'float32'}{', compiled' * options.compile}, norm "
        f"statistics {options.norm_statistics}, gates {options.rate or 'new'}"
    )
    print(f"{'network':16}  {'batch':>5}  {'dense s':>8}  {'gated s':>8}  {'ratio':>6}  quartiles")
    for name, size, batch in CASES:
        torch.manual_seed(0)
        dense = aigtool.create_network(name)
        gated = aigtool.convert(copy.deepcopy(dense))
        if options.rate is not None:
            begin_at(gated, options.rate)
        for network in (dense, gated):
            network.to(options.device, memory_format=torch.channels_last).train()
            for norm in batch_norms(network) if options.norm_statistics == "kept" else ():
                norm.eval()
        images = torch.randn(batch, *size, device=options.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (batch,), device=options.device)
        times: tuple[list[float], list[float]] = ([], [])
        with aigtool.recorded_decisions(gated) as decisions:
            steps = [
                stepper(network, (images, labels), decisions, dtype, options.compile)
                for network in (dense, gated)
            ]
            for _ in range(WARM_UP + REPEATS):
                for step, taken in zip(steps, times, strict=True):
                    start = time.perf_counter()
                    step()
                    taken.append(time.perf_counter() - start)
        ratios = [g / d for d, g in zip(*(taken[WARM_UP:] for taken in times), strict=True)]
        medians = [statistics.median(taken[WARM_UP:]) for taken in times]
        low, middle, high = statistics.quantiles(ratios)
        print(
            f"{name:16}  {batch:5}  {medians[0]:8.3f}  {medians[1]:8.3f}  {middle:6.3f}  "
            f"{low:.3f} to {high:.3f}"
        )


if __name__ == "__main__":
    main()
