"""The page's account of attacks: curves, what gates did, checks and costs."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from aigtool.intervals import wilson_interval
from aigtool.output import records
from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION
from aigtool.report.charts import Chart, Series
from aigtool.report.sources import Attack
from aigtool.report.words import counted, is_known, number, percent, share
from aigtool.robustness.plots import told_attack, told_defense, told_epsilon
from aigtool.robustness.sanity import DOUBT
from aigtool.robustness.tables import ALL

_COLORS = {"straight-through": BLUE, "frozen": GREEN, "worst": VERMILION}
_WAY = ["attack", "norm", "steps", "defense", "quality", "attacker"]


def accuracy_charts(attack: Attack) -> Iterator[Chart]:
    """Draw accuracy over epsilon: a chart an attack and defence, a curve a network and gates."""
    for _, rows in attack.rows.groupby(_WAY, dropna=False, sort=False):
        first = records(rows)[0]
        series = [
            _curve(str(network), str(gates), part)
            for (network, gates), part in rows.groupby(["network", "gate_gradient"], sort=False)
        ]
        title = f"{told_attack(first, attack.target)}, {told_defense(first)}"
        unit = ", in 1/255 of the pixel range" if first["norm"] == "linf" else ", l2"
        x, y = f"epsilon{unit}", "top-1 accuracy, %"
        yield Chart(title, x, y, series, range_y=(-2, 102))


def _curve(network: str, gates: str, rows: pd.DataFrame) -> Series:
    name = f"{network}, gates {gates}" if gates else network
    told = records(rows.sort_values("epsilon"))
    intervals = (wilson_interval(row["correct"], row["images"]) for row in told)
    spans = [(100 * float(low), 100 * float(high)) for low, high in intervals]
    said = [
        f"{name}, epsilon {told_epsilon(row['epsilon'], row['norm'])}: {percent(row['top1'])} "
        f"({low:.1f} to {high:.1f} %), "
        f"{counted(row['correct'], row['images'])} right" + _doubted(row)
        for row, (low, high) in zip(told, spans, strict=True)
    ]
    return Series(
        name,
        [row["epsilon"] * (255 if row["norm"] == "linf" else 1) for row in told],
        [row["top1"] for row in told],
        said,
        spans=spans,
        color=_COLORS.get(gates, BLUE if network == "gated" else ORANGE),
        dash="dash" if gates == "worst" else "solid",
    )


def _doubted(row: dict[str, Any]) -> str:
    return "; doubt: who does not know of the defence leaves fewer" if row.get("doubt") else ""


def gate_charts(attack: Attack) -> Iterator[Chart]:
    """Draw each gate's execution rate, clean and attacked, and how often it decides as before."""
    if attack.gates.empty:
        return
    rows = attack.gates[attack.gates["defense"] == "none"]
    for _, ways in rows.groupby(["network", "attack", "norm"], sort=False):
        gradient = ways["gate_gradient"].iloc[0]
        way = ways[ways["gate_gradient"] == gradient]
        attacked = way[(way["epsilon"] - attack.told_at).abs() < 1e-9]
        if attacked.empty or not attack.told_at:
            continue
        clean = way[(way["epsilon"] == 0) & (way["group"] == ALL)]
        first = records(attacked)[0] | {"steps": _steps(attack, way["attack"].iloc[0])}
        at = told_attack(first, attack.target)
        at += f", {told_epsilon(attack.told_at, first['norm'])}"
        at += f", gates {gradient}" if gradient else ""
        whole = attacked[attacked["group"] == ALL]
        gates = whole["gate"].astype(str).tolist()
        rates = [
            _rates("clean", clean, "execution_rate", GREY),
            _rates("attacked", whole, "execution_rate", VERMILION),
        ]
        yield Chart(
            f"What is executed under {at}",
            "gate",
            "execution rate",
            rates,
            range_y=(0, 1.02),
            categories=gates,
        )
        same = [
            _rates(f"{group} ({part['images'].iloc[0]} images)", part, "gate_agreement", None)
            for group, part in attacked.groupby("group", sort=False)
        ]
        yield Chart(
            f"Gates that decide as on the clean image, {at}",
            "gate",
            "share of images",
            same,
            range_y=(0, 1.02),
            categories=gates,
        )


def _steps(attack: Attack, name: str) -> Any:
    return attack.rows.loc[attack.rows["attack"] == name, "steps"].iloc[0]


def _rates(name: str, rows: pd.DataFrame, column: str, color: str | None) -> Series:
    return Series(
        name,
        rows["gate"].astype(str).tolist(),
        rows[column].tolist(),
        [f"{row['gate']}, {name}: {share(row[column])}" for row in records(rows)],
        color=color,
    )


def compute_table(attack: Attack) -> dict[str, Any]:
    """Return what attacks on compute cost, as a table."""
    rows = records(attack.compute)
    if not rows:
        return {"rows": []}
    dense, clean = rows[0]["gflops_dense"], rows[0]["gflops_clean"]
    caption = (
        f"Attacks on compute that keep the answer, {rows[0]['images']} images: clean ones take "
        f"{share(clean / dense)} of the dense network's GFLOPs"
    )
    if is_known(rows[0].get("clean_ms")):
        times = number(rows[0]["clean_ms"]), number(rows[0]["dense_ms"])
        caption += ", and {} ms one by one, dense {}".format(*times)
    return {
        "caption": caption,
        "head": [
            "goal",
            "epsilon",
            "of dense",
            "worst image",
            "saving destroyed",
            "answers kept",
            "ms",
            "ms, 95th percentile",
        ],
        "rows": [
            [
                row["goal"],
                told_epsilon(row["epsilon"], row["norm"]),
                share(row["gflops_attacked"] / dense),
                share(row["gflops_worst"] / dense),
                share(row["saving_destroyed"]),
                share(row["answers_kept"]),
                number(row.get("attacked_ms")),
                number(row.get("attacked_p95_ms")),
            ]
            for row in rows
        ],
    }


def check_table(attack: Attack) -> dict[str, Any]:
    """Return the sanity checks as a table."""
    rows = records(attack.checks)
    norm = attack.rows["norm"].iloc[0]
    return {
        "caption": f"Sanity checks, untargeted, at epsilon {told_epsilon(attack.told_at, norm)}",
        "head": [
            "what should hold",
            "network, gates",
            "right answers left",
            "no more than",
            "images",
            "verdict",
        ],
        "rows": [
            [
                row["name"],
                f"{row['network']}, {row['gate_gradient']}"
                if row["gate_gradient"]
                else row["network"],
                f"{row['correct']}",
                f"{row['other']:g}",
                f"{row['images']}",
                "passed" if row["passed"] else DOUBT,
            ]
            for row in rows
        ],
    }


def embedded(picture: Path) -> str:
    """Return a PNG as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
