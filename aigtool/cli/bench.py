"""``aigtool bench``: seconds of a gated network beside those of the network before gating."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigtool.cli.console import print_json, print_table, progress, share, status, warn, wrote
from aigtool.cli.grouping import takes_override
from aigtool.cli.options import (
    ClassMap,
    DataDir,
    Debug,
    Device,
    Download,
    Force,
    Json,
    Quiet,
    Seed,
    Split,
    check_goes_with_data,
    parse_counts,
    parse_names,
    parse_rates,
)
from aigtool.errors import UserError
from aigtool.models.override import InputOverride

TYPES = ("float32", "bfloat16", "float16")

if TYPE_CHECKING:
    from aigtool.inference.benchmark import Row
    from aigtool.models.files import Model


@takes_override
def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|NAME",
            help="Model file, or a network's name as convert takes it: with random weights, and "
            "gates that are told what to decide.",
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="LIST",
            help="What runs the networks: eager (PyTorch, as they are), skip (made ready to "
            "serve), compile (that, its residuals compiled) or onnx (exported).",
        ),
    ] = "eager,skip",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", metavar="LIST", help="Images a batch.")
    ] = "1,16",
    simulate_rate: Annotated[
        str | None,
        typer.Option(
            "--simulate-rate",
            metavar="LIST",
            help="Tell the gates what to decide: at random, with this execution rate; 0.6 by "
            "default where there is no --data.",
        ),
    ] = None,
    patterns: Annotated[
        int | None,
        typer.Option(
            "--patterns",
            metavar="N",
            min=1,
            help="Batches that are timed, each with gates of its own; by default 64 of one image, "
            "8 of several.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Turns of each batch.")
    ] = 5,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            metavar="LIST",
            help="That an operation may use; by default as many as PyTorch takes.",
            rich_help_panel="Running",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="LIST",
            help="float32, bfloat16 or float16.",
            rich_help_panel="Running",
        ),
    ] = "float32",
    device: Device = "auto",
    seed: Seed = 0,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|digits|NAME",
            help="Real images, of which the gates decide by themselves.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Split = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Write bench.csv and the picture bench.png.",
            rich_help_panel="Output",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    override: InputOverride,
) -> None:
    """Time a gated network beside the network before gating, in turns in one process.

    Ideal is the time between all gates closed and all open, in proportion to the multiply-
    accumulates that were executed; efficiency is ideal over measured.
    """
    if data is not None and simulate_rate is not None:
        raise UserError(
            "simulate-rate: it tells gates what to decide of noise, with --data they decide of "
            "images; expected one of the two"
        )
    check_goes_with_data(
        data,
        split=split,
        data_dir=data_dir,
        download=download,
        class_map=class_map,
        **replace(override, img_size=None).given,
    )
    rates = parse_rates("simulate-rate", simulate_rate or "0.6")
    sizes = parse_counts("batch-size", batch_size)
    types = parse_names("dtype", dtype, TYPES)
    with status("loading the network"):
        import torch

        from aigtool.cli.opening import open_for
        from aigtool.data.images import DataSource
        from aigtool.device import find_device
        from aigtool.inference.benchmark import Setting, measure_all
        from aigtool.inference.engines import ENGINES
        from aigtool.inference.folding import FEW, why_not_native
        from aigtool.output import check_output

        if out is not None:
            check_output(out, force=force, folder=True)
        engines = parse_names("engine", engine, ENGINES)
        counts = parse_counts("threads", threads or str(torch.get_num_threads()))
        where = find_device(device)
        loaded = _open(model, override, has_data=data is not None, seed=seed)
        in_c = where.type == "cpu" and "float32" in types and min(sizes) <= FEW
        if in_c and {"skip", "compile"} & {*engines} and (problem := why_not_native()) is not None:
            warn(
                f"gates take longer than they need to, as what is written in C is missing "
                f"({problem}): install aigtool again where gcc and Python's headers are"
            )
        images = None
        if data is not None:
            images = open_for(loaded, DataSource(data, data_dir, download, class_map), split)
    rows: list[Row] = []
    settings = [
        Setting(name, where, getattr(torch, kind), size, count)
        for name, kind, size, count in product(engines, types, sizes, counts)
    ]
    try:
        rows.extend(
            measure_all(
                loaded,
                settings,
                rates=rates,
                images=images,
                patterns=patterns,
                rounds=rounds,
                seed=seed,
                watch=lambda label, total: progress(label, total, "batches"),
            )
        )
    finally:  # what was measured is told, whatever ended it
        if rows:
            _report(rows, model, out, json=json)


def _report(rows: "Sequence[Row]", network: str, out: Path | None, *, json: bool) -> None:
    from aigtool.inference.files import write_bench

    paths = [] if out is None else write_bench(rows, out, network)
    if json:
        print_json({"network": network, "rows": [asdict(row) for row in rows]})
    else:
        _show(rows, network)
    wrote(paths)


def _open(model: str, override: InputOverride, *, has_data: bool, seed: int) -> "Model":
    import torch

    from aigtool.conversion import convert
    from aigtool.models.files import load_model
    from aigtool.models.origin import create_model

    if Path(model).exists() or Path(model).suffix in (".safetensors", ".onnx", ".pt2"):
        return load_model(model).overridden(override)
    if has_data:
        raise UserError(
            f"network {model} by name has random weights, of which images say nothing: expected a "
            "model file with --data"
        )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        torch.manual_seed(seed)
        made = create_model(model)[0].overridden(override)
        size = made.description.input.size
        convert(made.network, input_size=size, skip_unsplittable=True)
    for warning in warned:
        warn(str(warning.message))
    return made


def _show(rows: "Sequence[Row]", network: str) -> None:
    """Print a table; what all rows share stands above it."""
    varied = {
        "threads": [f"{row.threads}" for row in rows],
        "type": [row.dtype for row in rows],
    }
    shared = [f"{name} {cells[0]}" for name, cells in varied.items() if len({*cells}) == 1]
    columns = {
        "engine": [row.engine for row in rows],
        "batch": [f"{row.batch_size}" for row in rows],
        **{name: cells for name, cells in varied.items() if len({*cells}) > 1},
        "rate": [share(row.execution_rate) for row in rows],
        "GFLOPs\nof dense": [share(row.flops_fraction) for row in rows],
        "dense\nms": [f"{row.dense_ms:.2f}" for row in rows],
        "gated\nms": [f"{row.gated_ms:.2f}" for row in rows],
        "± half\nIQR": [f"{row.gated_iqr_ms / 2:.2f}" for row in rows],
        "ideal\nms": [f"{row.ideal_ms:.2f}" for row in rows],
        "ideal/\ngated": [share(row.efficiency) for row in rows],
        "dense/\ngated": [f"{row.speedup:.2f}" for row in rows],
    }
    cells = [list(line) for line in zip(*columns.values(), strict=True)]
    shared.append(f"{rows[0].patterns} patterns of gates")
    print_table(", ".join([network, rows[0].device, *shared]), list(columns), cells)
