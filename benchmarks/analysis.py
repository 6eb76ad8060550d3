"""Seconds and memory of a large trace: written while it is collected, read, and analysed.

Each analysis runs in a process of its own, and its peak is the whole process's, the trace included;
at most 60 s and 2 GB are wanted. The trace is made up: 1,300,000 images of 1,000 classes, 50 gates.

python benchmarks/analysis.py [--images N] [--classes N] [--gates N]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from aigtool.analysis.clustering import find_groups
from aigtool.analysis.comparison import compare_traces
from aigtool.analysis.costs import cost_by_confidence, cost_of_errors, cost_table
from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.figures import write_analysis
from aigtool.analysis.groups import compare_given
from aigtool.analysis.rates import blocks_executed, class_rates, gate_rates
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.trace import ExecutionTrace, load_trace, writing_trace

BATCH = 128
MEGABYTE = 2**10
"""In kilobytes, which Linux counts a process's peak in."""


def given_groups(trace: ExecutionTrace) -> object:
    """Test a half of the classes against the other."""
    names = list(trace.classes or ())
    half = len(names) // 2
    return compare_given(trace, {"first": names[:half], "second": names[half:]})


def all_figures(trace: ExecutionTrace) -> object:
    """Draw and write all that ``aigtool analyze`` does."""
    with tempfile.TemporaryDirectory() as folder:
        return len(write_analysis(trace, folder)[0])


ANALYSES: dict[str, Callable[[ExecutionTrace], object]] = {
    "rates of gates": gate_rates,
    "rates of classes": class_rates,
    "blocks executed": blocks_executed,
    "costs": cost_table,
    "costs over confidence": cost_by_confidence,
    "costs of wrong answers": cost_of_errors,
    "easiest and hardest images": extreme_images,
    "given groups": given_groups,
    "found groups": find_groups,
    "beside another trace": lambda trace: compare_traces({"one": trace, "other": trace}),
    "everything, drawn": all_figures,
}
FIRST = ("writing it", "reading it")


def counts(gates: int) -> NetworkFlops:
    """Return counts of a network with so many blocks, all alike."""
    blocks = [
        BlockFlops(f"layer{1 + 4 * n // gates}.{n}", 0.1, gated=True, skippable=0.1, gate=1e-4)
        for n in range(gates)
    ]
    return NetworkFlops(0.1 * gates + 0.2, 10**7, tuple(blocks))


def make(path: Path, images: int, classes: int, gates: int) -> None:
    """Write a trace in parts, as a network of classes with rates of their own would give it."""
    draw = np.random.default_rng(0)
    rates = draw.random((classes, gates))
    flops, names = counts(gates), tuple(f"class {number}" for number in range(classes))
    with writing_trace(path) as write:
        for first in range(0, images, BATCH):
            index = np.arange(first, min(first + BATCH, images))
            label = index * classes // images
            right = draw.random(len(index)) < 0.75
            frame = {
                "index": index,
                "file": [
                    f"{names[of]}/{number}.jpeg" for number, of in zip(index, label, strict=True)
                ],
                "label": label,
                "prediction": np.where(right, label, (label + 1) % classes),
                "label_rank": np.where(right, 0, 1),
                "confidence": draw.random(len(index)).astype(np.float32),
                "loss": draw.random(len(index)).astype(np.float32),
            }
            probability = rates[label].astype(np.float32)
            write(
                ExecutionTrace(
                    images=pd.DataFrame(frame),
                    executed=draw.random(probability.shape) < probability,
                    probability=probability,
                    flops=flops,
                    policy="argmax",
                    targets=(None,) * gates,
                    classes=names,
                    source="made up",
                    seconds=0.1,
                )
            )


def peak() -> float:
    """Return the most megabytes that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def row(name: str, compute: Callable[[], object]) -> None:
    """Print what a computation takes."""
    before, start = peak(), time.perf_counter()
    compute()
    seconds = time.perf_counter() - start
    print(f"{name:28}  {seconds:8.1f}  {peak():8.0f}  {peak() - before:8.0f}", flush=True)


def main() -> None:
    """Print a row an analysis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--gates", type=int, default=50)
    parser.add_argument("--only", choices=[*FIRST, *ANALYSES], help=argparse.SUPPRESS)
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "writing it":
        sizes = options.images, options.classes, options.gates
        row(options.only, lambda: make(options.trace, *sizes))
    elif options.only == "reading it":
        row(options.only, lambda: load_trace(options.trace).summary())
    elif options.only:
        trace = load_trace(options.trace)
        row(options.only, lambda: ANALYSES[options.only](trace))
    else:
        print(f"{'':28}  {'seconds':>8}  {'peak MB':>8}  {'more MB':>8}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for name in (*FIRST, *ANALYSES):
                told = ["--only", name, "--trace", f"{folder}/trace.parquet"]
                command = [sys.executable, __file__, *sys.argv[1:], *told]
                subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
