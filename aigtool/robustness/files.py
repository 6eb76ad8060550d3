"""What ``aigtool attack`` leaves behind."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from aigtool.output import records, remove_others, replacing, write_json
from aigtool.robustness.plots import (
    examples_figure,
    execution_figure,
    robustness_figure,
    told_attack,
    told_epsilon,
)
from aigtool.robustness.report import AttackReport
from aigtool.robustness.tables import group_rows

_FILES = (
    *("attack.csv", "gates.csv", "compute.csv", "attack.json"),
    *("attack.png", "execution.png", "examples.png"),
)


def write_attack(report: AttackReport, folder: str | Path) -> list[Path]:
    """Write what attacks came to as CSV and JSON, and figures.

    Args:
        report: What ``report_attack`` returned.
        folder: Where to.

    Returns:
        The files written: ``attack.csv``, ``gates.csv``, ``compute.csv``, ``attack.json``,
        ``attack.png``, ``execution.png`` and ``examples.png``, those that there is something for;
        of the others what an earlier run left is deleted.
    """
    at = Path(folder)
    tables = {"attack": report.rows, "gates": report.gates, "compute": report.compute}
    written = []
    for name, table in tables.items():
        if not table.empty:
            written.append(at / f"{name}.csv")
            with replacing(written[-1]) as temporary:
                table.to_csv(temporary, index=False)
    written.append(at / "attack.json")
    write_json(written[-1], as_json(report))
    figures = {"attack": robustness_figure(report.rows, report.record["target"], report.data)}
    if shown := _execution(report):
        figures["execution"] = shown
    if report.examples and report.case:
        figures["examples"] = examples_figure(
            report.examples, report.case, report.classes, report.record["target"], report.data
        )
    for name, figure in figures.items():
        written.append(at / f"{name}.png")
        with replacing(written[-1]) as temporary:
            figure.savefig(temporary)
    remove_others(at, _FILES, written)
    return written


def as_json(report: AttackReport) -> dict[str, object]:
    """Return the one JSON object of ``aigtool attack --json``."""
    return {
        "data": report.data,
        **report.record,
        "rows": records(report.rows),
        "groups": records(group_rows(report.gates)),
        "compute": records(report.compute),
        "checks": [check.as_dict() for check in report.checks],
    }


def _execution(report: AttackReport) -> Figure | None:
    """Draw gates under the last attack that sees them, the strongest by custom, undefended."""
    if report.gates.empty:
        return None
    rows: pd.DataFrame = report.gates[report.gates["defense"] == "none"]
    rows = rows[(rows["epsilon"] == 0) | (rows["epsilon"] == report.record["told_at"])]
    sighted = rows[rows["gate_gradient"].notna()]
    way = (sighted if len(sighted) else rows).iloc[-1]
    same = (rows["attack"] == way["attack"]) & (rows["network"] == way["network"])
    gradient = rows.loc[same, "gate_gradient"].iloc[0]
    chosen = rows[same & (rows["gate_gradient"].fillna("") == (gradient or ""))]
    if chosen["epsilon"].nunique() < 2:
        return None
    told = f"{told_attack(way, report.record['target'])}, "
    told += told_epsilon(report.record["told_at"], way["norm"])
    seen = f", gates {gradient}" if isinstance(gradient, str) else ""
    return execution_figure(chosen, told + seen, report.data)
