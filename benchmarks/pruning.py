"""Fine-tuned gated networks beside Torch-Pruning at the same GFLOPs.

Torch-Pruning takes inner channels out of the blocks of the same dense network, as many as leave
the GFLOPs that each run was asked for, by the criterion that leaves the least loss on validation
images; the pruned network is fine-tuned as the gated one was: the same images, epochs, teacher
and seed. What its norms see has changed, so the statistics of minibatches may suit it better.

pip install torch-pruning
python benchmarks/pruning.py RUN... --split val --out FOLDER [--norm-statistics batch]

RUN is a folder that `aigtool finetune --target-flops` wrote. Differences are paired by image, of
the mean over runs, with the standard error that the images leave.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
import torch_pruning as tp
from runs import (
    Answers,
    Run,
    answered,
    counted,
    finetuned,
    open_runs,
    open_split,
    print_rows,
    traced,
)
from torch import nn
from torch.nn import functional as F

from aigtool.blocks import GatedBlock
from aigtool.conversion import convert
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.models.files import Model
from aigtool.training.config import NormStatistics

CRITERIA = {
    "magnitude": tp.importance.GroupMagnitudeImportance(p=2),
    "batch-norm scale": tp.importance.BNScaleImportance(),
    "lamp": tp.importance.LAMPImportance(p=2),
}


def pruned(dense: Model, criterion: str, *, everywhere: bool, fraction: float) -> Model:
    """Prune inner channels until at most ``fraction`` of the GFLOPs is left."""
    low, high = 0.0, 1.0
    for _ in range(12):
        ratio = (low + high) / 2
        model = _pruned(dense, criterion, everywhere, ratio)
        left = counted(model)[1].gflops_dense / counted(dense)[1].gflops_dense
        low, high = (ratio, high) if left > fraction else (low, ratio)
    return _pruned(dense, criterion, everywhere, high)


def _pruned(dense: Model, criterion: str, everywhere: bool, ratio: float) -> Model:
    network = copy.deepcopy(dense.network)
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, *dense.description.input.size),
        importance=CRITERIA[criterion],
        global_pruning=everywhere,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,
        ignored_layers=list(outer_layers(network, dense)),
    )
    pruner.step()
    return Model(network, dense.description)


def outer_layers(network: nn.Module, dense: Model) -> Iterator[nn.Module]:
    """Yield the layers whose output goes on the residual stream, or out of the network."""
    gated = convert(copy.deepcopy(dense.network), input_size=dense.description.input.size)
    blocks = [name for name, module in gated.named_modules() if isinstance(module, GatedBlock)]
    inner = set()
    for name in blocks:
        layers = [m for m in network.get_submodule(name).modules() if isinstance(m, nn.Conv2d)]
        inner |= set(layers[:-1])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in inner:
            yield module


def loss(model: Model, images: ImageSet) -> float:
    """Return the mean cross entropy."""
    network, _ = counted(model)
    with torch.inference_mode():
        losses = [
            F.cross_entropy(network(x), y, reduction="sum").item() for x, y in load_batches(images)
        ]
    return sum(losses) / len(images)


def compared(run: Run, images: ImageSet, folder: Path, norms: NormStatistics) -> Answers:
    """Prune by the best criterion, fine-tune and judge."""
    val = run.images.val
    found = {
        (criterion, everywhere): pruned(
            run.dense, criterion, everywhere=everywhere, fraction=run.config.budget.share
        )
        for criterion in CRITERIA
        for everywhere in (False, True)
    }
    losses = {choice: loss(model, val) for choice, model in found.items()}
    best = min(losses, key=losses.__getitem__)
    for (criterion, everywhere), value in losses.items():
        kind = "everywhere alike" if not everywhere else "across the network"
        print(f"{run.name}, {criterion}, {kind}: validation loss {value:.3f} before training")
    print(f"{run.name}: {best}", flush=True)
    return finetuned(run, found[best], images, folder / run.name, norm_statistics=norms)


def main() -> None:
    """Print a row a network, and one for the mean over runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--norm-statistics", choices=get_args(NormStatistics), default="kept")
    options = parser.parse_args()
    runs = open_runs(options.runs)
    if rates := [run.name for run in runs if run.config.budget.unit != "flops"]:
        raise SystemExit(f"runs {', '.join(rates)}: expected runs with --target-flops")
    images = open_split(runs[0], options.split)
    print(f"{len(images)} images of {options.split}")
    rows = {
        "gated": [answered(run.name, traced(run.gated, images)) for run in runs],
        "pruned": [compared(run, images, options.out, options.norm_statistics) for run in runs],
    }
    print_rows(answered("dense", traced(runs[0].dense, images)).right, rows)


if __name__ == "__main__":
    main()
