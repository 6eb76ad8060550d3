"""Putting the page together."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from aigtool.analysis.findings import ASKED, tell_errors, tell_groups
from aigtool.output import records, replacing
from aigtool.report.curves import (
    bench_charts,
    cost_charts,
    gate_chart,
    sweep_chart,
    training_charts,
)
from aigtool.report.gates import GateTables, analyse
from aigtool.report.headlines import Measured, before_gating, headlines, measured_networks
from aigtool.report.heatmaps import class_heatmap, training_heatmap
from aigtool.report.pictures import album
from aigtool.report.robustness import (
    accuracy_charts,
    check_table,
    compute_table,
    embedded,
    gate_charts,
)
from aigtool.report.sources import Attack, Results, Run, find_results
from aigtool.report.words import UNKNOWN, counted, interval, is_known, number, percent, share
from aigtool.version import __version__

MOST_NAMES = 40
"""Groups of more classes than these are folded away."""


def write_report(paths: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write one HTML page of what other commands wrote; it needs no network to be looked at.

    Args:
        paths: Folders that finetune, analyze, attack, bench or sweep wrote, folders of such, and
            execution traces.
        out: The page.

    Returns:
        The files that it was made from.

    Raises:
        UserError: A path is missing or holds nothing of that, or a file is cut short.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> trace.save(folder / "test.parquet")
        >>> [path.name for path in write_report([folder], folder / "report.html")]
        ['test.parquet']
        >>> "not measured" in (folder / "report.html").read_text()
        True
    """
    results = find_results(paths)
    title = ", ".join(Path(path).absolute().name for path in paths)
    command = shlex.join(["aigtool", "report", *map(str, paths), "--out", str(out)])
    text = render(results, title, command)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [Path(file.path) for file in results.files]


def render(results: Results, title: str, command: str) -> str:
    """Return the page of what was found.

    Args:
        results: What was found.
        title: Of the page.
        command: What it was made by.
    """
    looks = dict(results.analyses)
    networks = measured_networks(results.traces, results.analyses)
    for network in (network for network in networks if network.decides):
        trace = network.trace
        if trace and not any(tables.is_of(trace) for tables in results.analyses.values()):
            looks[network.name] = analyse(trace)
    page = _environment().get_template("page.html")
    steps = np.linspace(0, 1, 21)
    return page.render(
        title=title,
        command=command,
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        headlines=headlines(results, networks),
        networks_head=_HEAD,
        networks=[*_measured(networks), *_compared(results)],
        looks=[_look(name, tables, results.runs) for name, tables in looks.items()],
        attacks=[_attack(name, attack) for name, attack in results.attacks.items()],
        benches=[_bench(name, rows) for name, rows in results.benches.items()],
        sweeps=[
            {"name": name, "about": sweep.data, "chart": sweep_chart(sweep)}
            for name, sweep in results.sweeps.items()
        ],
        runs=[_run(name, run) for name, run in results.runs.items()],
        files=[[f.path, f.what, f"{f.size:,}", f.written] for f in results.files],
        palette=[to_hex(color) for color in colormaps["cividis"](steps)],
        style=_asset("page.css"),
        script=_asset("page.js"),
        plotly=get_plotlyjs(),
    )


_ASSETS = Path(__file__).parent / "assets"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals["unknown"] = UNKNOWN
    made.policies["json.dumps_function"] = _dumped
    return made


def _dumped(value: Any, **_options: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Return what JSON can hold: no numpy, and nothing that is no number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


_KINDS = ("adaptive", "always_on", "always_off")
_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "right": lambda row: counted(row["correct"], row["images"]),
    "top-1": lambda row: percent(row["top1"], row["top1_stderr"]),
    "95 % interval": lambda row: interval(row["correct"], row["images"]),
    "top-5": lambda row: percent(row.get("top5"), row.get("top5_stderr")),
    "paired difference, points": lambda row: (
        f"{row['difference']:+.1f} ± {row['difference_stderr']:.1f} to {row['difference_to']}"
        if is_known(row.get("difference"))
        else "-"
    ),
    "blocks executed": lambda row: share(row["execution_rate"]) if _has_gates(row) else "-",
    "GFLOPs": lambda row: number(row["gflops_executed"]),
    "of dense": lambda row: share(row["flops_fraction"]),
    "gates adaptive/on/off": lambda row: (
        "/".join(f"{row[f'{kind}_gates']:g}" for kind in _KINDS) if _has_gates(row) else "-"
    ),
}
_HEAD = ["network", "data", *_COLUMNS]


def _has_gates(row: Mapping[str, Any]) -> bool:
    return is_known(row.get("execution_rate"))


def _attack(name: str, attack: Attack) -> dict[str, Any]:
    return {
        "name": name,
        "about": attack.data,
        "charts": [*accuracy_charts(attack), *gate_charts(attack)],
        "compute": compute_table(attack),
        "checks": check_table(attack),
        "examples": None if attack.examples is None else embedded(attack.examples),
    }


def _measured(networks: Sequence[Measured]) -> list[list[str]]:
    rows = []
    for network in networks:
        dense = before_gating(network, networks) if network.figures["gates"] else None
        row = {**network.figures, **(network.beside(dense) if dense else {})}
        rows.append([network.name, network.data, *(show(row) for show in _COLUMNS.values())])
    return rows


def _compared(results: Results) -> list[list[str]]:
    return [
        [row["trace"], f"compared in {name}", *(show(row) for show in _COLUMNS.values())]
        for name, rows in results.comparisons.items()
        for row in records(rows.assign(difference_to=rows["trace"].iloc[0]))
    ]


def _look(name: str, tables: GateTables, runs: Mapping[str, Run]) -> dict[str, Any]:
    found = tables.found
    return {
        "name": name,
        "about": f"{found['data']}: {found['images']:,} images, policy {found['policy']}; "
        f"{found['adaptive_gates']} gates adaptive, {found['always_on_gates']} always on, "
        f"{found['always_off_gates']} always off.",
        "undecided": found["undecided_gates"],
        "heatmap": class_heatmap(tables),
        "findings": _findings(found),
        "caution": _caution(runs),
        "charts": [gate_chart(tables), *cost_charts(tables)],
        "album": album(tables),
    }


def _findings(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = []
    for key, title in (("found_groups", "Groups found"), ("given_groups", "Groups given")):
        if key in found:
            members = found[key].get("members", [])
            groups = members.items() if isinstance(members, dict) else [("", m) for m in members]
            count = len([*chain.from_iterable(names for _, names in groups)])
            about = {"groups": [*groups], "is_short": count <= MOST_NAMES}
            said = tell_groups(found[key])
            asked = ASKED[key] if "p" in found[key] else ""
            told.append({"title": title, "told": said, "asked": asked, **about})
    errors = tell_errors(found["errors"]) or "no comparison: all answers are right, or all wrong"
    return [*told, {"title": "Wrong answers", "told": errors, "asked": "", "groups": []}]


def _caution(runs: Mapping[str, Run]) -> str:
    """Say whether gates were trained to do what the findings find."""
    if told := [name for name, run in runs.items() if run.tells_classes]:
        return (
            f"The gates of {', '.join(told)} were trained to tell classes apart (finetune's "
            "information_about: class). That classes part, and what goes with it, was asked for; "
            "it is no discovery about the images."
        )
    if told := [name for name, run in runs.items() if run.has_gates and run.settings]:
        return (
            f"The gates of {', '.join(told)} were not trained to tell classes apart, as "
            "config.yaml says."
        )
    return (
        "Whether the gates were trained to tell classes apart (finetune's information_about: "
        "class, its default) is not known here: no run folder with its config.yaml was given."
    )


def _bench(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "engine": lambda row: f"{row['engine']}, batch {row['batch_size']}",
        "device": lambda row: f"{row['device']}, {row['dtype']}, threads: {row['threads']}",
        "blocks executed": lambda row: share(row["execution_rate"]),
        "dense": lambda row: number(row["dense_ms"]),
        "gated": lambda row: number(row["gated_ms"]),
        "± half IQR": lambda row: number(row["gated_iqr_ms"] / 2, ".2g"),
        "ideal": lambda row: number(row["ideal_ms"]),
        "ideal/gated": lambda row: number(row["efficiency"], ".2f"),
        "dense/gated": lambda row: number(row["speedup"], ".2f"),
    }
    cells = [[show(row) for show in columns.values()] for row in records(rows)]
    return {"name": name, "charts": bench_charts(rows), "head": [*columns], "rows": cells}


def _run(name: str, run: Run) -> dict[str, Any]:
    settings = {key: value for key, value in run.settings.items() if key != "options"}
    settings |= settings.pop("versions", {}) | run.settings.get("options", {})
    epochs = f"{len(run.metrics)} epochs"
    best = run.metrics[run.metrics["best"].astype(bool)]["epoch"].tolist()
    return {
        "name": name,
        "about": f"{epochs}, the best of which is {best[-1]}." if best else f"{epochs}.",
        "charts": training_charts(run),
        "heatmap": training_heatmap(run) if run.has_gates else None,
        "options": [(key, "-" if value is None else value) for key, value in settings.items()],
    }
