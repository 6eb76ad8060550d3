"""What conversion adds to building a network: medians of repeats, side by side in one process.

python benchmarks/conversion.py [NAME ...]
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import aigtool

REPEATS = 7


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return what a call took and what it returned."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main(names: list[str]) -> None:
    """Print a line a network."""
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; medians of {REPEATS} after a first"
    )
    print(f"{'network':24}  {'build s':>8}  {'convert s':>9}  {'blocks':>6}")
    for name in names:
        build, convert = [], []
        for _ in range(1 + REPEATS):
            took, network = seconds(lambda name=name: aigtool.create_network(name))
            build.append(took)
            took, network = seconds(lambda network=network: aigtool.convert(network))
            convert.append(took)
        gates = len(list(aigtool.named_gates(network)))
        middle = (statistics.median(times[1:]) for times in (build, convert))
        print(f"{name:24}  {next(middle):8.2f}  {next(middle):9.2f}  {gates:6}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "torchvision:resnet50", "resnet152", "cifar_resnet110"])
