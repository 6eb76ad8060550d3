"""``aigtool predict``: what a network says about images, and what each of them took."""

import csv
import json as json_format
import sys
from collections.abc import Iterable
from dataclasses import asdict
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aigtool.cli.console import print_rows, status, warn
from aigtool.cli.grouping import takes_override
from aigtool.cli.options import Debug, Device, Quiet
from aigtool.errors import UserError
from aigtool.models.override import InputOverride

if TYPE_CHECKING:
    from aigtool.inference.answers import Answering
    from aigtool.inference.prediction import Prediction

COLUMNS = {"file": 36, "class": 16, "probability": -11, "blocks": -6, "GFLOPs": -8, "ms": -8}


@takes_override
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Model file that finetune wrote, or the file that export wrote."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders (their JPEG, PNG, WebP, TIFF, BMP and PPM), patterns in quotes, "
            "or - for a list of files on stdin.",
        ),
    ],
    format_: Annotated[
        Literal["table", "csv", "jsonl"],
        typer.Option("--format", help="Of what is printed; jsonl names the blocks that ran."),
    ] = "table",
    engine: Annotated[
        Literal["skip", "onnx"] | None,
        typer.Option(
            "--engine",
            help="skip runs a model file in PyTorch, onnx an exported file with onnxruntime; by "
            "default what MODEL is made for.",
            rich_help_panel="Running",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "-b",
            min=1,
            help="Images a batch, which share its milliseconds; 1 times each alone.",
            rich_help_panel="Running",
        ),
    ] = 32,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-j", min=1, help="Threads that read images.", rich_help_panel="Running"
        ),
    ] = 2,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    override: InputOverride,
) -> None:
    """Classify images: class, probability, blocks run, GFLOPs and milliseconds of each.

    It reads and prints as it goes, so that any number of images will do.
    """
    with status("loading the network"):
        from aigtool.data.loading import eval_transform
        from aigtool.inference.prediction import find_images
        from aigtool.inference.prediction import predict as predict_files

        network = _open(model, override, engine, device)
    failed = 0

    def unreadable(problem: str) -> None:
        nonlocal failed
        warn(problem)
        failed += 1

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # names of files are bytes, whatever they encode
            stream.reconfigure(errors="surrogateescape")
    rows = predict_files(
        network,
        find_images(images, sys.stdin or ()),
        eval_transform(network.description.input),
        batch_size=batch_size,
        workers=workers,
        unreadable=unreadable,
    )
    first = list(islice(rows, 1))
    if first or not failed:
        _SHOW[format_](chain(first, rows), network)
    if failed:
        others = "; the others are above" if first else ", and there were no others"
        raise UserError(f"images that could not be read: {failed}{others}")


def _open(model: Path, override: InputOverride, engine: str | None, device: str) -> "Answering":
    from aigtool.device import find_device
    from aigtool.inference.answers import ServedNetwork
    from aigtool.inference.exported import SUFFIX, ExportedNetwork
    from aigtool.models.files import load_model

    is_exported = model.suffix == SUFFIX
    if engine == "onnx" and not is_exported:
        raise UserError(
            f"engine onnx runs an exported file, {model} is none: make one with "
            f"`aigtool export {model}`"
        )
    if not is_exported:
        return ServedNetwork(load_model(model).overridden(override), find_device(device))
    if engine == "skip":
        raise UserError(
            f"engine skip runs a model file, {model} is an exported one: leave --engine out"
        )
    if options := [*override.given]:
        raise UserError(
            f"--{options[0].replace('_', '-')} with an exported file, which takes the images that "
            "it was exported for: leave it out, or give it to aigtool export"
        )
    if device not in ("auto", "cpu"):
        raise UserError(f"device {device!r}: an exported file runs on the cpu; use --device cpu")
    return ExportedNetwork(model)


def _table(rows: "Iterable[Prediction]", _network: "Answering") -> None:
    print_rows(
        COLUMNS,
        (
            [
                row.file,
                row.name,
                f"{100 * row.probability:.1f} %",
                f"{row.blocks}",
                f"{row.gflops:.4f}",
                f"{row.milliseconds:.2f}",
            ]
            for row in rows
        ),
    )


def _csv(rows: "Iterable[Prediction]", _network: "Answering") -> None:
    kept = ("file", "label", "name", "probability", "blocks", "gflops", "milliseconds")
    writer = csv.DictWriter(sys.stdout, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row))


def _lines(rows: "Iterable[Prediction]", network: "Answering") -> None:
    gates = [block.name for block in network.flops.gated_blocks]
    for row in rows:
        executed = dict(zip(gates, row.executed, strict=True))
        line = json_format.dumps({**asdict(row), "executed": executed})
        sys.stdout.write(line + "\n")


_SHOW = {"table": _table, "csv": _csv, "jsonl": _lines}
