"""Results that were made, of numbers that are known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from aigtool.analysis.costs import cost_by_confidence, cost_of_errors
from aigtool.analysis.extremes import extreme_images
from aigtool.analysis.rates import blocks_executed, class_table, gate_rates
from aigtool.budget import Budget
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.report.gates import GateTables
from aigtool.trace import ExecutionTrace
from aigtool.training import sweep
from aigtool.training.sweep import Point, point_rows, target_rows

SCRIPT = "<script>alert(1)</script>"


def made_trace(
    classes: int, gates: int, images: int, names: Sequence[str] | None = None, source: str = "made"
) -> ExecutionTrace:
    """Return a trace of so many images of each class; every fifth answer is wrong."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    count = len(labels)
    rates = random.random((classes, gates))
    blocks = [f"layer{1 + 3 * n // max(gates, 1)}.{n}" for n in range(gates)]
    wrong = np.arange(count) % 5 == 4
    frame = pd.DataFrame(
        {
            "index": np.arange(count),
            "file": [f"{number}.png" for number in range(count)],
            "label": labels,
            "prediction": np.where(wrong, (labels + 1) % classes, labels),
            "label_rank": wrong.astype(int),
            "confidence": random.random(count),
            "loss": 0.5,
        }
    )
    executed = random.random((count, gates)) < rates[labels]
    return ExecutionTrace(
        images=frame,
        executed=executed,
        probability=executed.astype(np.float32),
        flops=NetworkFlops(
            2.0, 1, tuple(BlockFlops(n, 1 / max(gates, 1), True, 0.5 / gates, 0, 1) for n in blocks)
        ),
        policy="argmax",
        targets=(None,) * gates,
        classes=tuple(names or (f"class {number}" for number in range(classes))),
        source=source,
        seconds=1.0,
    )


def without_gates(trace: ExecutionTrace) -> ExecutionTrace:
    """Return what the network before gating says of the same images: all of it right."""
    none = np.zeros((len(trace.images), 0))
    images = trace.images.assign(label_rank=0, prediction=trace.images["label"])
    flops, bare = NetworkFlops(2.0, 1, ()), none.astype(np.float32)
    told = {"executed": none.astype(bool), "probability": bare, "targets": ()}
    return replace(trace, images=images, flops=flops, policy="open", **told)


def tables_of(trace: ExecutionTrace) -> GateTables:
    """Return an analysis without its tests by permutation, which take their time."""
    found = {
        "data": trace.source,
        **trace.summary(),
        "undecided_gates": [],
        "errors": cost_of_errors(trace),
        "found_groups": {"reason": "not asked for"},
    }
    made = class_table, gate_rates, blocks_executed, cost_by_confidence, extreme_images
    return GateTables(found, *(make(trace) for make in made))


def write_run(folder: Path, information_about: str = "class", gates: int = 3) -> None:
    """Write what a run of two epochs leaves."""
    folder.mkdir(parents=True)
    rows = [
        {
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "train_top1": 80.0,
            "train_execution_rate": 0.7,
            "train_argmax_rate": 0.7,
            "val_correct": 80 + epoch,
            "val_top1": 80.0 + epoch,
            "val_top1_stderr": 4.0,
            "val_images": 100,
            "val_execution_rate": 0.6,
            "val_flops_fraction": 0.65,
            "val_loss": 1.0 / epoch,
            **{f"rate.layer1.{gate}": 0.1 * epoch * gate for gate in range(gates)},
            "best": epoch == 2,
        }
        for epoch in (1, 2)
    ]
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    options = {"information": 15.0, "information_about": information_about, "lr": 0.01}
    settings = {"model": "m.safetensors", "options": options, "versions": {"aigtool": "0.1.0"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def attack_row(network: str, epsilon: float, correct: int, quality: int | None) -> dict[str, Any]:
    return {
        "network": network,
        "attack": "fgsm",
        "norm": "linf",
        "steps": 1,
        "gate_gradient": "straight-through" if network == "gated" else None,
        "epsilon": epsilon,
        "defense": "none" if quality is None else "jpeg",
        "quality": quality,
        "attacker": None if quality is None else "static",
        "correct": correct,
        "top1": float(correct),
        "images": 100,
        "doubt": quality == 50,
        "execution_rate": 0.6 if network == "gated" else None,
        "gflops_executed": 1.2 if network == "gated" else 2.0,
    }


def write_attack(folder: Path, reference: str = "dense") -> None:
    """Write what an attack leaves, of 100 images."""
    folder.mkdir(parents=True)
    rows = [
        attack_row(network, epsilon, correct - lost, quality)
        for network, counts in (("gated", (90, 40)), (reference, (92, 30)))
        for epsilon, correct in zip((0.0, 8 / 255), counts, strict=True)
        for quality, lost in ((None, 0), (75, 2), (50, 3))
    ]
    cost = {"goal": "raise", "epsilon": 8 / 255, "images": 100, "correct": 90}
    cost |= {"gflops_dense": 2.0, "gflops_clean": 1.2, "gflops_attacked": 1.4, "gflops_worst": 1.8}
    cost |= {"saving_destroyed": 0.25, "answers_kept": 1.0, "clean_ms": 3.0, "dense_ms": 5.0}
    cost |= {"norm": "linf", "attacked_ms": 3.5, "attacked_p95_ms": 4.5}
    check = {"network": "gated", "gate_gradient": "straight-through", "images": 100, "other": 10.0}
    checks = [
        {**check, "name": "what holds", "correct": 5, "passed": True},
        {**check, "name": "what does not", "correct": 50, "passed": False},
    ]
    told = {"data": "made, 100 images", "told_at": 8 / 255, "target": None, "rows": rows}
    told |= {"compute": [cost], "checks": checks}
    (folder / "attack.json").write_text(json.dumps(told))
    gates = [
        {
            **{key: row[key] for key in ("network", "attack", "norm", "defense", "attacker")},
            **{"gate_gradient": "straight-through", "epsilon": row["epsilon"], "images": 100},
            **{"group": "all", "gate": f"layer1.{gate}", "execution_rate": 0.5 + 0.1 * gate},
            "gate_agreement": 1.0 - row["epsilon"],
        }
        for row in rows
        if row["network"] == "gated"
        for gate in range(3)
    ]
    pd.DataFrame(gates).to_csv(folder / "gates.csv", index=False)
    Image.new("RGB", (40, 30), "red").save(folder / "examples.png")


def write_bench(folder: Path) -> None:
    """Write what a benchmark leaves."""
    folder.mkdir(parents=True)
    rows = [
        {
            "engine": engine,
            "device": "cpu",
            "dtype": "float32",
            "batch_size": size,
            "threads": 2,
            "dense_ms": 10.0 * size,
            "open_ms": 10.5 * size,
            "closed_ms": 2.0 * size,
            "gated_ms": gated * size,
            "gated_iqr_ms": 0.4,
            "ideal_ms": 6.5 * size,
            "efficiency": 0.9,
            "speedup": 10 / gated,
            "execution_rate": 0.6,
            "gated_flops_fraction": 0.6,
        }
        for size in (16, 1)
        for engine, gated in (("eager", 9.0), ("skip", 8.0))
    ]
    pd.DataFrame(rows).to_csv(folder / "bench.csv", index=False)


def write_sweep(folder: Path) -> None:
    """Write what a sweep of two targets comes to, 80 of 100 right, beside the dense network."""
    traces = {
        Point(Budget(share, "flops"), seed=0): made_trace(4, gates, 25)
        for share, gates in ((0.4, 6), (0.6, 12))
    }
    dense = without_gates(made_trace(4, 6, 25))
    runs = point_rows(traces, {"dense": dense}, "dense")
    sweep.write_sweep(runs, target_rows(traces, dense), folder, "made, 100 images")


def write_all(folder: Path) -> None:
    """Write one of everything, each in a folder of its own."""
    write_run(folder / "run")
    write_attack(folder / "attack")
    write_bench(folder / "bench")
    write_sweep(folder / "sweep")
    trace = made_trace(4, 6, 10, [SCRIPT, "b", "c", "d"])
    trace.save(folder / "traces" / "gated.parquet")
    without_gates(trace).save(folder / "traces" / "dense.parquet")
