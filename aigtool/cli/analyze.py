"""``aigtool analyze``: what the gates do, in figures."""

from pathlib import Path
from typing import Annotated

import typer

from aigtool.cli.console import print_json, print_table, share, status, wrote
from aigtool.cli.options import (
    BatchSize,
    ClassMap,
    DataDir,
    Debug,
    Device,
    Download,
    Force,
    Json,
    Limit,
    PolicyOption,
    Quiet,
    Seed,
    Split,
    Workers,
)


def analyze(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|TRACE",
            help="A model file (then give --data), or a trace that evaluate wrote.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|digits|NAME",
            help="The images to run a model file on.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    policy: PolicyOption = None,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where the figures go; NAME-analysis beside the file by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw which classes use which blocks: figures and the numbers behind them."""
    from aigtool.errors import UserError
    from aigtool.output import check_output

    is_trace = subject.suffix == ".parquet"
    if is_trace == (data is not None):
        raise UserError(
            f"{subject} is a trace, which has its images in it: leave --data out"
            if is_trace
            else f"{subject} with no images: give --data, or a trace (.parquet) that evaluate wrote"
        )
    folder = check_output(
        out or subject.with_name(f"{subject.stem}-analysis"), force=force, folder=True
    )
    with status("loading"):
        from aigtool.analysis.figures import write_figures
        from aigtool.analysis.rates import gate_rates
        from aigtool.trace import load_trace

        if data is None:
            trace = load_trace(subject)
        else:
            from aigtool.cli.opening import collect, open_for, ready_to_serve
            from aigtool.data.images import DataSource
            from aigtool.device import find_device
            from aigtool.models.files import load_model

            where = find_device(device)
            model = load_model(subject)
            if not model.description.gated_blocks:
                raise UserError(f"{subject} has no gates to analyse: aigtool convert adds them")
            source = DataSource(data, data_dir, download, class_map)
            images = open_for(model, source, split, limit)
            prepared = ready_to_serve(model, where, seed)
    if data is not None:
        chosen = policy or model.description.policy
        trace = collect("running the network", prepared, images, chosen, batch_size, workers)
    written = write_figures(trace, folder)
    summary = trace.summary()
    if json:
        print_json({**summary, "data": trace.source, "out": [str(path) for path in written]})
    else:
        print_table(
            f"{trace.source}, {summary['images']} images: {summary['adaptive_gates']} gates "
            f"adaptive, {summary['always_on_gates']} always on, "
            f"{summary['always_off_gates']} always off",
            ["gate", "executed", "rate", "mean probability"],
            [
                [row["gate"], f"{row['executed']}", share(row["rate"]), share(row["probability"])]
                for row in gate_rates(trace).to_dict("records")
            ],
        )
    wrote(written, "" if data is None else f"aigtool attack {subject} --data {data}")
