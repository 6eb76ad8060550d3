"""``aigtool analyze``: what the gates do, in figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigtool.cli.console import print_facts, print_json, print_table, share, status, warn, wrote
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
from aigtool.errors import UserError
from aigtool.output import check_output, records

if TYPE_CHECKING:
    from aigtool.models.files import Model

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
    workers: Workers = 2,
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
    """Draw which classes use which blocks and what images cost, and test what can be chance.

    With --image, draw the blocks that one image executes instead.
    """
    is_trace = subject.suffix == ".parquet"
    if image is not None and (is_trace or data is not None):
        raise UserError(
            f"--image {image} with {'a trace' if is_trace else '--data'}: expected a model file "
            "and the image alone"
        )
    if data is None and image is None and not is_trace:
        raise UserError(
            f"{subject} with no images: give --data, or a trace (.parquet) that evaluate wrote"
        )
    kinds = parse_names("format", formats, FORMATS)
    folder = check_output(
        out or subject.with_name(f"{subject.stem}-analysis"),
        force=force or image is not None,
        folder=True,
    )
    if image is not None:
        _draw_one(subject, image, folder, kinds, device, json=json)
        return
    with status("loading"):
        from aigtool.analysis.figures import write_analysis
        from aigtool.analysis.groups import read_groups
        from aigtool.analysis.rates import gate_rates
        from aigtool.cli.opening import collect, open_for, ready_to_serve
        from aigtool.data.images import DataSource, ImageSet, default_split, open_images
        from aigtool.data.loading import eval_transform
        from aigtool.device import find_device
        from aigtool.models.description import InputSpec
        from aigtool.trace import load_trace

        source = DataSource(data or "", data_dir, download, class_map)
        images: ImageSet | None = None
        trace = load_trace(subject) if is_trace else None
        if trace is not None:
            named = None if groups is None else read_groups(groups, trace.classes)
            if data is not None:
                part = default_split(source) if split is None else split
                pixels = eval_transform(InputSpec())  # asked of no image
                images = open_images(source, part, pixels, trace.classes).limited(limit)
        else:
            where, model = find_device(device), _open_gated(subject)
            judged = images = open_for(model, source, split, limit)
            named = None if groups is None else read_groups(groups, images.classes)
            prepared = ready_to_serve(model, where, seed)
            chosen = policy or model.description.policy
    if trace is None:
        trace = collect("running the network", prepared, judged, chosen, batch_size, workers)
    with status("drawing and testing"):
        written, found = write_analysis(
            trace,
            folder,
            groups=named,
            clusters=clusters,
            images=images,
            formats=kinds,
            seed=seed,
        )
    if "contact_sheet" in found:
        warn(found["contact_sheet"])
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


def _open_gated(path: Path) -> "Model":
    from aigtool.models.files import load_model

    model = load_model(path)
    if not model.description.gated_blocks:
        raise UserError(f"{path} has no gates to analyse: aigtool convert adds them")
    return model


def _draw_one(
    path: Path, image: Path, folder: Path, formats: Sequence[str], device: str, *, json: bool
) -> None:
    """Write the inference graph of one image, and its blocks as a table."""
    with status("loading"):
        import torch

        from aigtool.analysis.figures import write_figure
        from aigtool.analysis.image_plots import inference_graph, thumbnail
        from aigtool.analysis.one_image import block_table
        from aigtool.data.images import read_image
        from aigtool.data.loading import eval_transform
        from aigtool.device import find_device
        from aigtool.inference.answers import ServedNetwork

        where, model = find_device(device), _open_gated(path)
        picture = read_image(str(image))
        network = ServedNetwork(model, where)
    answers = network(torch.stack([eval_transform(model.description.input)(picture)]))
    blocks = block_table(answers, network.flops)
    probability, label = (float(value) for value in answers.logits.softmax(1)[0].max(0))
    names = model.description.class_names
    name = str(int(label)) if names is None else names[int(label)]
    gflops = float(network.flops.executed(answers.executed.numpy(), model.description.policy)[0])
    said = f"{name}, {100 * probability:.1f} %, {gflops:.4g} GFLOPs"
    figure = inference_graph(blocks, thumbnail(picture), said, f"{path}, {image}")
    written = write_figure(folder, f"{image.stem}-blocks", blocks, dict.fromkeys(formats, figure))
    if json:
        rows = {"blocks": records(blocks), "gflops": gflops, "probability": probability}
        print_json({"name": name, **rows, "out": [str(file) for file in written]})
    else:
        executed = int(blocks["executed"].sum())
        print_facts(str(image), [("answer", said), ("blocks", f"{executed} of {len(blocks)}")])
    wrote(written)


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
