"""Does adaptivity earn its keep? Fine-tuned networks beside two controls at the same GFLOPs.

permuted: each image gets the gate decisions of another image.
static: one pattern of blocks for all images, the best that was found on the validation images,
fine-tuned as the gated networks were: the same images, epochs, teacher and seeds.

python benchmarks/adaptivity.py RUN... --split val [--static FOLDER]

RUN is a folder that `aigtool finetune` wrote. Differences are paired by image, of the mean over
runs, with the standard error that the images leave.
"""

import argparse
import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from runs import (
    Answers,
    Floats,
    Run,
    answered,
    counted,
    finetuned,
    open_runs,
    open_split,
    print_rows,
    traced,
)
from torch import Tensor, nn

from aigtool.blocks import GatedBlock
from aigtool.conversion import convert, forced_decisions, named_gates
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.flops import count_flops
from aigtool.models.files import Model
from aigtool.trace import ExecutionTrace
from aigtool.training.pattern import skip_least

PERMUTATIONS = 20


def permuted(model: Model, images: ImageSet, trace: ExecutionTrace) -> Floats:
    """Return the share of permutations under which each image is right, ``(images,)``."""
    network, _ = counted(model)
    names = list(dict(named_gates(network)))
    draw = np.random.default_rng(0)
    decided = [trace.executed[draw.permutation(len(images))] for _ in range(PERMUTATIONS)]
    right = [
        _right(network, images, names, torch.from_numpy(executed)).numpy() for executed in decided
    ]
    return np.mean(right, axis=0)


@torch.inference_mode()
def _right(network: nn.Module, images: ImageSet, names: list[str], executed: Tensor) -> Tensor:
    right, done = [], 0
    for pixels, labels in load_batches(images):
        rows = executed[done : done + len(labels)]
        done += len(labels)
        with forced_decisions(network, dict(zip(names, rows.unbind(1), strict=True))):
            right.append(network(pixels).argmax(1) == labels)
    return torch.cat(right).double()


class Skipped(nn.Module):
    """A gated block without its residual: the shortcut alone."""

    def __init__(self, block: GatedBlock) -> None:
        super().__init__()
        source = block.ungated()
        for name, value in vars(source).items():
            self.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
        self._parts = block.parts

    def forward(self, x: Tensor) -> Tensor:
        """Run the shortcut and what follows the addition."""
        _, inputs = self._parts.head(self, x)
        shortcut: Tensor = self._parts.shortcut(self, *inputs)
        tail = self._parts.tail
        result: Tensor = shortcut if tail is None else tail(self, shortcut.clone())
        return result


def without(dense: Model, skipped: Iterable[str]) -> Model:
    """Return a copy of a dense network whose named blocks run their shortcuts alone."""
    network = convert(copy.deepcopy(dense.network), input_size=dense.description.input.size)
    blocks = {n: m for n, m in network.named_modules() if isinstance(m, GatedBlock)}
    skipped = set(skipped)
    for name, block in blocks.items():
        parent, _, child = name.rpartition(".")
        left = Skipped(block) if name in skipped else block.ungated()
        setattr(network.get_submodule(parent), child, left)
    return Model(network, dense.description)


def static(run: Run, images: ImageSet, folder: Path) -> Answers:
    """Choose a pattern on validation images, fine-tune the network with it, and judge it."""
    size = run.dense.description.input.size
    gated = Model(convert(copy.deepcopy(run.dense.network), input_size=size), run.dense.description)
    flops = count_flops(gated.network, size)
    skipped = skip_least(gated, run.images.val, flops, run.config.budget)
    print(f"{run.name}, static: without {', '.join(skipped)}", flush=True)
    return finetuned(run, without(run.dense, skipped), images, folder / run.name)


def main() -> None:
    """Print a row a network, and one for the mean over runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", default="val")
    parser.add_argument("--static", type=Path, metavar="FOLDER", help="where its runs go")
    options = parser.parse_args()
    runs = open_runs(options.runs)
    images = open_split(runs[0], options.split)
    rows: dict[str, list[Answers]] = {"gated": [], "permuted": []}
    for run in runs:
        trace = traced(run.gated, images)
        gated = answered(run.name, trace)
        rows["gated"].append(gated)
        right = permuted(run.gated, images, trace)
        rows["permuted"].append(replace(gated, right=right))
    if options.static:
        rows["static"] = [static(run, images, options.static) for run in runs]
    print(f"{len(images)} images of {options.split}, {PERMUTATIONS} permutations")
    print_rows(answered("dense", traced(runs[0].dense, images)).right, rows)


if __name__ == "__main__":
    main()
