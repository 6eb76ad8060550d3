"""Seconds of gated networks beside dense ones, served by PyTorch and by onnxruntime.

Writes the sections that it measures into docs/benchmarks.md; each is measured side by side in one
process on a machine with nothing else to do. All of them take some two hours on two slow cores.

python benchmarks/serving.py --model FILE --data FOLDER [--only pytorch|onnx|exports|own|memory]
"""

import argparse
import bisect
import copy
import ctypes
import gc
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

import aigtool
from aigtool.data.images import open_images
from aigtool.data.loading import eval_transform, load_batches
from aigtool.device import to_channels_last
from aigtool.flops import count_flops
from aigtool.inference.answers import Answering, ServedNetwork
from aigtool.inference.benchmark import ALONE, Row, Setting, draw_patterns, measure_all
from aigtool.inference.checking import compare
from aigtool.inference.engines import EngineName, OnnxEngine
from aigtool.inference.exported import ExportedNetwork, import_onnxruntime
from aigtool.inference.exporting import export_onnx
from aigtool.inference.serving import serve
from aigtool.inference.timing import take_turns
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model, load_model
from aigtool.models.origin import create_model
from aigtool.output import replacing
from aigtool.trace import collect_trace

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
THREADS = 2
CPU = torch.device("cpu")
OTHERS = (
    *("resnet101", "resnext50_32x4d", "seresnet50", "resnetv2_50"),
    *("torchvision:wide_resnet50_2", "resnet18"),
)
CASES = (
    ("resnet50", (1, 16, 32), (0.4, 0.6, 0.8)),
    ("cifar_resnet110", (1, 128), (0.6,)),
    *((name, (1, 16), (0.6,)) for name in OTHERS),
)
MEMORY = (("resnet50", 1), ("resnet50", 16), ("cifar_resnet110", 128))
PROCESSES = 5
"""Of each network, of whose memory the median is taken."""
PROFILED = 100
"""Images that a profile is of."""
OPERATORS = 8
"""Most operators that are told by name."""
Lines = Iterator[str]


def gated(name: str) -> Model:
    """Return a network by name with gates, its weights random."""
    made, _ = create_model(name)
    network = aigtool.convert(made.network, input_size=made.description.input.size)
    return Model(network.eval(), made.description)


def settings(engine: EngineName, sizes: Iterable[int]) -> list[Setting]:
    """Return how to run."""
    return [Setting(engine, CPU, torch.float32, size, THREADS) for size in sizes]


COLUMNS: dict[str, Callable[[Row], str]] = {
    "batch": lambda row: f"{row.batch_size}",
    "rate": lambda row: f"{row.execution_rate:.2f}",
    "FLOPs": lambda row: f"{row.flops_fraction:.3f}",
    "dense ms": lambda row: f"{row.dense_ms:.1f} ± {row.dense_iqr_ms / 2:.1f}",
    "open / dense": lambda row: f"{row.open_over_dense:.3f}",
    "gated ms": lambda row: f"{row.gated_ms:.1f} ± {row.gated_iqr_ms / 2:.1f}",
    "ideal ms": lambda row: f"{row.ideal_ms:.1f}",
    "efficiency": lambda row: f"**{row.efficiency:.3f}**",
    "5 % to 95 %": lambda row: f"{row.efficiency_p5:.2f} to {row.efficiency_p95:.2f}",
    "dense / gated": lambda row: f"{row.speedup:.2f}",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Yield a Markdown table, its first column to the left."""
    yield f"| {' | '.join(header)} |"
    yield f"| --- |{' ---: |' * (len(header) - 1)}"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def timed(cases: Iterable[tuple[str, Iterator[Row]]]) -> Lines:
    """Yield a table of rows by network."""

    def cells() -> Iterator[list[str]]:
        for name, rows in cases:
            for row in rows:
                print(name, {k: v for k, v in asdict(row).items() if k != "device"}, flush=True)
                yield [name, *(cell(row) for cell in COLUMNS.values())]

    return table(["network", *COLUMNS], cells())


def pytorch(_: argparse.Namespace) -> Lines:
    """Time served networks under drawn decisions."""
    yield from timed(
        (name, measure_all(gated(name), settings("skip", sizes), rates=rates))
        for name, sizes, rates in CASES
    )


def onnx(_: argparse.Namespace) -> Lines:
    """Time exported networks, and one beside timm's as it is."""
    names = ("resnet50", "cifar_resnet110")
    yield from timed(
        (name, measure_all(gated(name), settings("onnx", [1]), rates=[0.6])) for name in names
    )
    yield ""
    yield from operators("resnet50")
    model = gated("resnet50")
    pixels = torch.rand(1, *model.description.input.size)
    eager = to_channels_last(create_model("resnet50")[0].network.eval())
    last = pixels.contiguous(memory_format=torch.channels_last)
    engine = OnnxEngine(model, THREADS)
    patterns = draw_patterns(0.6, len(engine.names), batch_size=1, count=ALONE, seed=0)
    torch.set_num_threads(THREADS)

    def run_eager() -> object:
        with torch.inference_mode():
            return eager(last)

    def told(pattern: torch.Tensor) -> Callable[[], object]:
        engine.decide(pattern)
        return partial(engine, pixels)

    ratios = []
    for number, pattern in enumerate(patterns):
        ready = partial(told, torch.from_numpy(pattern))
        times = take_turns({"eager": lambda: run_eager, "onnx": ready}, 5, seed=number)
        ratios.append(statistics.median(times["eager"]) / statistics.median(times["onnx"]))
    low, middle, high = statistics.quantiles(ratios, n=4)
    yield ""
    yield (
        "timm's `resnet50` as it is, channels-last, over the exported gated one at rate 0.6, batch "
        f"1: **{middle:.2f}** (quartiles {low:.2f} and {high:.2f} over {ALONE} patterns)."
    )


def operators(name: str) -> Lines:
    """Yield a table of where onnxruntime's profile says that an exported network's time goes."""
    model = gated(name)
    dense, opened = (profiled(one) for one in (copy.deepcopy(model).stripped(), model))
    names = sorted({*dense, *opened}, key=lambda op: dense.get(op, 0.0) - opened.get(op, 0.0))
    most = names[:OPERATORS]
    print(name, {"dense": dense, "open": opened}, flush=True)
    rows = [(op, [of.get(op, 0.0) for of in (dense, opened)]) for op in most]
    left = [sum(of.values()) - sum(of.get(op, 0.0) for op in most) for of in (dense, opened)]
    return table(
        [f"operators of {name}", "dense ms", "open ms", "more ms"],
        (
            [op, f"{before:.2f}", f"{after:.2f}", f"{after - before:.2f}"]
            for op, (before, after) in [*rows, ("all others", left)]
        ),
    )


def profiled(model: Model) -> dict[str, float]:
    """Return the milliseconds an image by operator, all gates open: medians over images.

    What an ``If`` takes is without what its branch does.
    """
    onnxruntime = import_onnxruntime()
    flops = count_flops(model.network, model.description.input.size)
    program = export_onnx(model, flops, thresholds_as_inputs=True).SerializeToString()
    feeds = {block.name: np.full(1, -np.inf, np.float32) for block in flops.gated_blocks}
    pixels = np.random.default_rng(0).random((1, *model.description.input.size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as it is served
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(program, options, ["CPUExecutionProvider"])
        for _ in range(PROFILED):
            session.run(None, {"pixels": pixels, **feeds})
        events = json.loads(Path(session.end_profiling()).read_text())
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    images: list[Counter[str]] = [Counter() for _ in starts]
    around: list[tuple[int, str]] = []
    for event in sorted(kernels, key=lambda one: (one["ts"], -one["dur"])):
        start, took, operator = event["ts"], event["dur"], event["args"]["op_name"]
        while around and around[-1][0] <= start:
            around.pop()
        spent = images[bisect.bisect(starts, start) - 1]
        spent[operator] += took
        if around:
            spent[around[-1][1]] -= took
        around.append((start + took, operator))
    names = {name for spent in images for name in spent}
    return {n: statistics.median(spent[n] for spent in images) / 1000 for n in sorted(names)}


@torch.no_grad()
def decisive(gate: aigtool.Gate) -> None:
    """Let a fresh gate, which executes all images, decide this way or that."""
    gate.fc2.weight.normal_()
    gate.fc2.bias.zero_()


def exports(_: argparse.Namespace) -> Lines:
    """Compare exported networks with served ones on noise."""

    def cells() -> Iterator[list[str]]:
        for name in ("resnet50", "cifar_resnet110", *OTHERS):
            model = gated(name)
            gates = [gate for _, gate in aigtool.named_gates(model.network)]
            for gate in gates:
                decisive(gate)
            flops = count_flops(model.network, model.description.input.size)
            data = export_onnx(model, flops).SerializeToString()
            noise = torch.rand(
                8, *model.description.input.size, generator=torch.Generator().manual_seed(0)
            )
            exported = ExportedNetwork(data)
            check = compare(exported, ServedNetwork(model), [noise], [0.0] * len(gates))
            yield [
                name,
                f"{len(data) / 1e6:.0f}",
                f"{exported(noise).executed.float().mean():.2f}",
                f"{check.difference:.1e}",
                f"{check.flips}",
                f"{check.ties}",
                "yes" if check.holds else "**no**",
            ]

    return table(["network", "MB", "rate", "largest difference", "flips", "ties", "holds"], cells())


def own(options: argparse.Namespace) -> Lines:
    """Judge and time a fine-tuned network by its own decisions on real images."""
    model = load_model(options.model)
    spec = model.description.input
    images = open_images(
        str(options.data), options.split, eval_transform(spec), model.description.class_names
    )
    flops = count_flops(model.network, spec.size)
    trace = collect_trace(PixelNetwork(model.network, spec).eval(), images, flops=flops)
    batches = list(load_batches(images))
    exported = ExportedNetwork(export_onnx(model, flops).SerializeToString())

    def judged(kind: str, ask: Answering) -> list[str]:
        answers = [ask(pixels) for pixels, _ in batches]
        right = torch.cat([a.logits.argmax(1) for a in answers]) == torch.cat(
            [y for _, y in batches]
        )
        executed = torch.cat([a.executed for a in answers]).numpy()
        same = bool((right.numpy() == trace.correct).all())
        decided = int((executed != trace.executed).any(axis=1).sum())
        return [kind, f"{int(right.sum())}", "yes" if same else "**no**", f"{decided}"]

    yield f"Of {len(images)} images the masked network has {int(trace.correct.sum())} right."
    yield ""
    yield from table(
        ["run by", "right", "image by image", "images with another decision"],
        [judged("PyTorch", ServedNetwork(model)), judged("onnxruntime", exported)],
    )
    yield ""
    runs: tuple[tuple[EngineName, tuple[int, ...]], ...] = (("skip", (1, 128)), ("onnx", (1,)))
    yield from timed(
        (engine, measure_all(model, settings(engine, sizes), images=images))
        for engine, sizes in runs
    )


def memory(_: argparse.Namespace) -> Lines:
    """Measure what processes of each network grow to, weights included, in turns."""

    def megabytes(*of: object) -> float:
        command = [sys.executable, __file__, "--grown", ",".join(map(str, of))]
        done = subprocess.run(  # noqa: S603
            command, check=True, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout.split()[-1])

    def cells() -> Iterator[list[str]]:
        for name, size in MEMORY:
            pairs = [
                [megabytes(name, size, kind) for kind in ("dense", "gated")]
                for _ in range(PROCESSES)
            ]
            dense, skipping = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratios = sorted(gated / dense for dense, gated in pairs)
            yield [
                name,
                f"{size}",
                f"{dense:.0f}",
                f"{skipping:.0f}",
                f"**{skipping / dense:.3f}**",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            ]

    header = ["network", "batch", "dense MB", "gated MB", "gated / dense", "of single pairs"]
    return table(header, cells())


def grown(name: str, size: str, kind: str) -> float:
    """Return by how many MB this process grows at most, from before its network to after it ran."""
    torch.set_num_threads(THREADS)
    before = _memory("VmRSS")
    model = gated(name)
    if kind == "dense":
        model = model.stripped()
    pixels = torch.rand(int(size), *model.description.input.size)
    served = serve(model.network, model.description.input.size)
    gates = [gate for _, gate in aigtool.named_gates(served)]
    del model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    with torch.inference_mode():
        for pattern in draw_patterns(0.6, len(gates), batch_size=int(size), count=8, seed=0):
            for gate, told in zip(gates, torch.from_numpy(pattern).T, strict=True):
                gate.threshold = torch.where(told, -torch.inf, torch.inf)
            served(pixels)
    return _memory("VmHWM") - before


def _memory(kind: str) -> float:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


SECTIONS = {
    "pytorch": (pytorch, "Served by PyTorch"),
    "onnx": (onnx, "Exported, run by onnxruntime"),
    "exports": (exports, "Exports that pass their check"),
    "own": (own, "A fine-tuned network by its own decisions"),
    "memory": (memory, "Memory"),
}
MADE = "Python"
"""What the measured part of a section begins with."""


def written(page: str, title: str, body: str) -> str:
    """Return a page with the measured part under a heading replaced."""
    heading = f"## {title}\n"
    before, _, rest = page.partition(heading)
    section, mark, after = rest.partition("\n## ")
    about = section.partition(f"\n{MADE}")[0].rstrip()
    about = f"{about}\n\n" if about else "\n"
    return f"{before}{heading}{about}{body}\n{mark}{after}"


def main() -> None:
    """Measure the sections named and write them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=[*SECTIONS], help="a section; repeats")
    parser.add_argument("--model", type=Path, help="for own: a fine-tuned model file")
    parser.add_argument("--data", type=Path, help="for own: its images")
    parser.add_argument("--split", default="test")
    parser.add_argument("--grown", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grown:
        print(grown(*options.grown.split(",")))
        return
    chosen = options.only or [*SECTIONS]
    if "own" in chosen and (options.model is None or options.data is None):
        parser.error("own: expected --model and --data")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
    try:
        versions.append(f"onnxruntime {importlib.metadata.version('onnxruntime')}")
    except importlib.metadata.PackageNotFoundError:
        versions.append("no onnxruntime")
    made = f"{MADE} {platform.python_version()}, {', '.join(versions)}, {THREADS} threads, float32."
    for name in chosen:
        measure, title = SECTIONS[name]
        body = "\n".join(measure(options))
        page = written(PAGE.read_text(), title, f"{made}\n\n{body}")
        with replacing(PAGE) as temporary:
            temporary.write_text(page)


if __name__ == "__main__":
    main()
