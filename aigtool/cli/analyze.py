"""``aigtool analyze``: what the gates do, in figures."""

from pathlib import Path
from typing import Annotated

import typer

from aigtool.cli.console import status, wrote
from aigtool.cli.grouping import takes_override
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
from aigtool.cli.reporting import of_data
from aigtool.errors import UserError
from aigtool.models.override import InputOverride
from aigtool.output import check_output

FORMATS = ("png", "svg", "pdf")
TRACE = ".parquet"


@takes_override
def analyze(
    subjects: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL|TRACE...",
            help="A model file (then give --data), or a trace that evaluate wrote; several are "
            "compared with the first.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|digits|NAME",
            help="The images to run a model file on; with a trace those that it is of, for a "
            "contact sheet.",
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
    workers: Workers = None,
    seed: Seed = 0,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Draw the blocks that this image executes."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="FILE|cifar10",
            help="Groups of classes to test: a YAML file with a group a line, such as "
            r"'animals: \[cat, dog]', or ready-made ones.",
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
    *,
    override: InputOverride,
) -> None:
    """Draw which classes use which blocks and what images cost, and test what can be chance.

    With --image, draw the blocks that one image executes instead.
    """
    subject, *others = subjects
    is_trace = subject.suffix == TRACE
    if image is not None and (is_trace or others or data is not None):
        given = "--data" if data is not None else "several" if others else "a trace"
        raise UserError(
            f"--image {image} with {given}: expected one model file and the image alone"
        )
    apart = {"--policy": policy, "--groups": groups, "--clusters": clusters}
    apart |= {"--split": split, "--limit": limit}
    if image is not None and (unused := [name for name, value in apart.items() if value]):
        raise UserError(
            f"{unused[0]} with --image {image}, where one image is decided as the model file says: "
            "leave it out"
        )
    models = [path for path in subjects if path.suffix != TRACE]
    if data is None and image is None and models:
        raise UserError(
            f"{models[0]} with no images: give --data, or a trace (.parquet) that evaluate wrote"
        )
    if others and (groups or clusters):
        option = "--groups" if groups else "--clusters"
        raise UserError(
            f"{option} with several: expected one model file or trace; analyze each by itself"
        )
    if twice := [path for path in subjects if subjects.count(path) > 1]:
        raise UserError(f"{twice[0]} twice: expected different model files and traces")
    if not models and (policy or (data is None and (limit or split))):
        raise UserError(
            "--policy, --limit and --split with a trace, which has its images and decisions: leave "
            "them out (--limit and --split go with --data)"
        )
    if not models and (options := [*override.given]):
        raise UserError(
            f"--{options[0].replace('_', '-')} with a trace, whose network has seen its images: "
            "leave it out"
        )
    kinds = parse_names("format", formats, FORMATS)
    folder = check_output(
        out or subject.with_name(f"{subject.stem}-{'comparison' if others else 'analysis'}"),
        force=force or image is not None,
        folder=True,
    )
    if image is not None:
        for kind in ("csv", *kinds):
            check_output(folder / f"{image.stem}-blocks.{kind}", force=force)
    with status("loading the libraries"):
        from aigtool.cli.analyze_steps import Asked, analyze_one, compare, draw_image
        from aigtool.device import find_device

        where = find_device(device)
    asked = Asked(
        *(data, split, limit, data_dir, download, class_map),
        *(policy, override, where, batch_size, workers, seed),
    )
    if image is not None:
        written = draw_image(subject, image, override, folder, kinds, where, json=json)
    elif others:
        written = compare(subjects, asked, folder, kinds, json=json)
    else:
        written = analyze_one(subject, asked, folder, kinds, groups, clusters, json=json)
    attackable = not (is_trace or others or image is not None)
    again = of_data(data, data_dir, class_map)
    wrote(written, f"aigtool attack {subject} {again}" if attackable else "")
