"""The page's curves: of training, sweeps, seconds and costs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from aigtool.output import records
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE
from aigtool.report.charts import Chart, Series
from aigtool.report.gates import GateTables
from aigtool.report.sources import Run, Sweep
from aigtool.report.words import counted, measured, number, percent, share

KINDS = {"always on": BLUE, "adaptive": GREEN, "always off": GREY}
"""Colours of kinds of gates."""


def training_charts(run: Run) -> list[Chart]:
    """Draw loss, accuracy and, of a network with gates, execution rate over the epochs."""
    metrics = run.metrics
    accuracy = [
        _over(metrics, "train_top1", "training", BLUE),
        Series(
            "validation ± standard error",
            metrics["epoch"].tolist(),
            metrics["val_top1"].tolist(),
            [
                f"epoch {row['epoch']}: {percent(row['val_top1'], row.get('val_top1_stderr'))}, "
                f"{row['val_images']} images"
                for row in records(metrics)
            ],
            stderr=metrics["val_top1_stderr"].tolist() if "val_top1_stderr" in metrics else None,
            color=ORANGE,
        ),
    ]
    loss = [
        _over(metrics, "train_loss", "training", BLUE),
        _over(metrics, "val_loss", "validation (task)", ORANGE),
    ]
    charts = [
        Chart("Loss", "epoch", "loss", loss, from_zero=True),
        Chart("Accuracy", "epoch", "top-1 accuracy, %", accuracy),
    ]
    if run.has_gates:
        rates = [
            _over(metrics, column, name, color)
            for column, name, color in (
                ("train_execution_rate", "training", BLUE),
                ("train_argmax_rate", "training, without noise", GREEN),
                ("val_execution_rate", "validation, calibrated", ORANGE),
            )
            if column in metrics
        ]
        charts.append(Chart("Execution rate", "epoch", "mean over gates", rates, range_y=(0, 1.02)))
    return charts


def _over(metrics: pd.DataFrame, column: str, name: str, color: str) -> Series:
    epochs, values = metrics["epoch"].tolist(), metrics[column].tolist()
    said = [
        f"epoch {epoch}, {name}: {number(value)}"
        for epoch, value in zip(epochs, values, strict=True)
    ]
    return Series(name, epochs, values, said, color=color)


def gate_chart(tables: GateTables) -> Chart:
    """Draw how often each gate executes its block, a bar a gate."""
    series = []
    for kind, color in KINDS.items():
        rows = tables.gates[tables.gates["kind"] == kind]
        said = [
            f"{row['gate']}, {kind}: {share(row['rate'])}, "
            f"{counted(row['executed'], row['images'])}; "
            f"classes from {share(row['class_min'])} to {share(row['class_max'])}"
            for row in records(rows)
        ]
        if said:
            gates, rates = rows["gate"].tolist(), rows["rate"].tolist()
            series.append(Series(kind, gates, rates, said, kind="bars", color=color))
    return Chart(
        "How often each gate executes its block",
        "",
        "execution rate",
        series,
        range_y=(0, 1.02),
        categories=tables.gates["gate"].tolist(),
    )


def cost_charts(tables: GateTables) -> list[Chart]:
    """Draw how many blocks images take, and how that goes with confidence."""
    blocks, confidence = tables.blocks, tables.confidence
    taken = blocks[blocks["images"] > 0]["blocks"]
    bars = [
        Series(
            f"{answer} answer",
            blocks["blocks"].tolist(),
            blocks[answer].tolist(),
            [
                f"{row['blocks']} blocks: {row[answer]:,} images, {answer} answer"
                for row in records(blocks)
            ],
            kind="bars",
            color=color,
        )
        for answer, color in (("right", BLUE), ("wrong", ORANGE))
    ]
    line = Series(
        "",
        [*range(1, len(confidence) + 1)],
        confidence["blocks"].tolist(),
        [
            f"confidence {row['low']:.3f} to {row['high']:.3f}: "
            f"{measured(row['blocks'], row['blocks_stderr'])} blocks, {row['images']:,} images, "
            f"{percent(row['top1'])} right"
            for row in records(confidence)
        ],
        stderr=confidence["blocks_stderr"].tolist(),
    )
    return [
        Chart(
            "Blocks an image executes",
            "gated blocks executed",
            "images",
            bars,
            range_x=(taken.min() - 0.7, taken.max() + 0.7),
        ),
        Chart(
            "Cost over confidence",
            "bins of images, from least to most confident",
            "blocks executed ± standard error",
            [line],
        ),
    ]


def sweep_chart(sweep: Sweep) -> Chart:
    """Draw accuracy over GFLOPs: runs, their means, and networks without gates."""
    runs, targets = sweep.runs, sweep.targets.sort_values("gflops_executed")
    others = runs[runs["target"].isna()].sort_values("gflops_executed")

    def point(row: dict[str, Any]) -> str:
        spent = f"{percent(row['top1'])}, {row['correct']:g} of {row['images']:g} right, "
        spent += f"{number(row['gflops_executed'])} GFLOPs"
        if not row.get("target"):
            return f"{row['network']}: {spent}"
        seed = f"mean of {row['runs']}" if "runs" in row else f"seed {row['seed']:g}"
        return f"{row['unit']} {row['target']:g}, {seed}: {spent}"

    def series(name: str, table: pd.DataFrame, **style: Any) -> Series:
        spent, top1 = table["gflops_executed"].tolist(), table["top1"].tolist()
        return Series(name, spent, top1, [point(row) for row in records(table)], **style)

    drawn = [
        series(
            "without gates ± standard error",
            others,
            stderr=others["top1_stderr"].tolist(),
            color=GREY,
            dash="dash",
        ),
        series("runs", runs[runs["target"].notna()], kind="points", color="#56B4E9"),
        series("mean of runs", targets, color=BLUE),
    ]
    return Chart("Accuracy over compute", "GFLOPs an image", "top-1 accuracy, %", drawn)


def bench_charts(rows: pd.DataFrame) -> list[Chart]:
    """Draw each engine's time as a share of its dense network's, measured and ideal."""
    return [
        Chart(
            f"Time, batch {size}",
            "executed share of gated GFLOPs",
            "time over the dense network's",
            [s for key, part in shown.groupby(_VARIANT, sort=False) for s in _timed(key, part)],
            range_x=(0, 1),
        )
        for size, shown in rows.groupby("batch_size")
    ]


_VARIANT = ["engine", "device", "dtype", "threads"]


def _timed(key: Any, part: pd.DataFrame) -> Sequence[Series]:
    engine, device, dtype, threads = key
    name = f"{engine}, {device}, {dtype}, threads: {threads}"
    ends = [(part[end] / part["dense_ms"]).mean() for end in ("closed_ms", "open_ms")]
    said = [
        f"{name}: gated {row['gated_ms']:.3g} ms, dense {row['dense_ms']:.3g} ms, "
        f"ideal {row['ideal_ms']:.3g} ms, dense/gated {row['speedup']:.2f}"
        for row in records(part)
    ]
    ideal = [f"{name}, ideal: all gates {end}" for end in ("closed", "open")]
    share_of = (part["gated_ms"] / part["dense_ms"]).tolist()
    return (
        Series(name, part["gated_flops_fraction"].tolist(), share_of, said, kind="points"),
        Series(f"{engine}, ideal", [0, 1], ends, ideal, kind="lines", dash="dot"),
    )
