"""``aigtool analyze``: what the gates do, in figures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import print_facts, print_json, print_table, share, status, wrote
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
    parse_names,
)

FORMATS = ("png", "svg", "pdf")


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
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="FILE|cifar10",
            help="Groups of classes to test: a YAML file with a list of class names a group, or "
            "ready-made ones.",
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters",
            min=2,
            help="How many groups to find by clustering; by default 2 to 6, as part the classes "
            "best.",
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Of the figures: png, svg, pdf.")
    ] = "png,svg",
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
    kinds = parse_names("format", formats, FORMATS)
    folder = check_output(
        out or subject.with_name(f"{subject.stem}-analysis"), force=force, folder=True
    )
    with status("loading"):
        from aigtool.analysis.figures import write_analysis
        from aigtool.analysis.groups import read_groups
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
        classes = trace.classes if data is None else images.classes
        named = None if groups is None else read_groups(groups, classes)
        if data is not None:
            prepared = ready_to_serve(model, where, seed)
    if data is not None:
        chosen = policy or model.description.policy
        trace = collect("running the network", prepared, images, chosen, batch_size, workers)
    with status("drawing and testing"):
        written, found = write_analysis(
            trace, folder, groups=named, clusters=clusters, formats=kinds, seed=seed
        )
    if json:
        print_json({**found, "out": [str(path) for path in written]})
    else:
        print_table(
            f"{trace.source}, {found['images']} images: {found['adaptive_gates']} gates "
            f"adaptive, {found['always_on_gates']} always on, "
            f"{found['always_off_gates']} always off",
            ["gate", "executed", "rate", "lowest\nclass", "highest\nclass", "mean\nprobability"],
            [
                [
                    row["gate"],
                    f"{row['executed']}",
                    *(share(row[name]) for name in ("rate", "class_min", "class_max")),
                    share(row["probability"]),
                ]
                for row in gate_rates(trace).to_dict("records")
            ],
        )
        _tell(found)
    wrote(written, "" if data is None else f"aigtool attack {subject} --data {data}")


def _tell(found: dict[str, Any]) -> None:
    """Say whether groups of classes part, and whether wrong answers cost more."""
    facts = [
        (name.replace("_", " "), _groups(found[name]))
        for name in ("found_groups", "given_groups")
        if name in found
    ]
    errors = found["errors"]
    if errors["difference"] is not None:
        within, stderr = errors["difference_within_classes"], errors["stderr_within_classes"]
        facts.append(
            (
                "wrong answers",
                f"{errors['wrong']}, which take {errors['difference']:+.2f} ± "
                f"{errors['stderr']:.2f} blocks; {within:+.2f} ± {stderr:.2f} within classes",
            )
        )
    print_facts("", facts)


def _groups(tested: dict[str, Any]) -> str:
    if "reason" in tested:
        return str(tested["reason"])
    members = tested["members"]
    named = members.values() if isinstance(members, dict) else members
    listed = " | ".join(", ".join(names) for names in named)
    apart = "" if tested["ratio"] is None else f"{tested['ratio']:.2f} times "
    return (
        f"{listed}: {apart}as far from each other as within (p {tested['p']:.3g}, at least "
        f"{tested['least_p']:.3g})"
    )
