"""``aigtool export``: a network as a file that runs, and skips, without aigtool."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aigtool.cli.console import note, print_facts, print_json, status, wrote
from aigtool.cli.grouping import takes_override
from aigtool.cli.options import (
    ClassMap,
    DataDir,
    Debug,
    Download,
    Force,
    Json,
    ModelFile,
    Quiet,
    Seed,
    Split,
    check_goes_with_data,
)
from aigtool.errors import UserError
from aigtool.models.override import InputOverride

if TYPE_CHECKING:
    from torch import Tensor

    from aigtool.flops import NetworkFlops
    from aigtool.inference.answers import Answering
    from aigtool.inference.checking import Check
    from aigtool.models.files import Model

IMAGES = 32
"""That the exported file is checked on unless --limit says otherwise."""


@takes_override
def export(
    model: ModelFile,
    format_: Annotated[
        Literal["onnx", "torch"],
        typer.Option(
            "--format",
            help="onnxruntime runs onnx; torch is a program that torch.export.load opens.",
        ),
    ] = "onnx",
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Compare it with the network before it is written: the same decisions, and logits "
            "within 1e-4, or 1e-4 of the image's largest where that is above 1.",
        ),
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|digits|NAME",
            help="The images to check it on; seeded noise by default.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Split = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help=f"Images to check it on, {IMAGES} by default.",
            rich_help_panel="Data",
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="By default MODEL with another suffix.",
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
    """Write a network as one file that computes only what its gates choose, without aigtool.

    It takes one image at a time, pixels in 0..1, and gives logits and the gates' decisions.
    """
    check_goes_with_data(
        data, split=split, data_dir=data_dir, download=download, class_map=class_map
    )
    _check_can_check(format_, check=check, data=data, limit=limit)
    count = limit or IMAGES
    with status("loading the network"):
        import torch

        from aigtool.cli.opening import open_for
        from aigtool.conversion import named_gates
        from aigtool.data.images import DataSource
        from aigtool.data.loading import load_batches
        from aigtool.flops import count_flops
        from aigtool.inference.answers import ServedNetwork
        from aigtool.inference.checking import compare
        from aigtool.models.files import load_model
        from aigtool.output import check_output, replacing

        loaded = load_model(model).overridden(override)
        suffix = {"onnx": ".onnx", "torch": ".pt2"}[format_]
        target = out or model.with_suffix(suffix)
        check_output(target, force=force, suffix=suffix)
        size = loaded.description.input.size
        generator = torch.Generator().manual_seed(seed)
        batches: Iterable[Tensor] = (
            torch.rand(1, *size, generator=generator) for _ in range(count)
        )
        checked_on = f"{count} images of seeded noise"
        if data is not None:
            source = DataSource(data, data_dir, download, class_map)
            images = open_for(loaded, source, split, count)
            batches = (pixels for pixels, _ in load_batches(images))
            checked_on = f"{images.name} {images.split}".strip() + f", {len(images)} images"
    with status("exporting"):
        write = {"onnx": _onnx, "torch": _program}[format_]
        exported, run = write(loaded, count_flops(loaded.network, size))
    result: dict[str, Any] = {
        "out": str(target),
        "format": format_,
        "bytes": len(exported),
        "check": None,
    }
    facts = [("size", f"{len(exported) / 1e6:.1f} MB"), ("check", "not made")]
    if check:
        with status("checking"):
            found = compare(
                run(),
                ServedNetwork(loaded),
                batches,
                [gate.threshold.item() for _, gate in named_gates(loaded.network)],
            )
        result["check"] = {"data": checked_on, **asdict(found)}
        facts[1:] = [
            ("checked on", checked_on),
            ("decisions", f"the same, {found.ties} ties" if found.ties else "the same"),
            ("logits", f"within {found.difference:.1e}"),
        ]
        _must_hold(found, checked_on)
    with replacing(target) as temporary:
        temporary.write_bytes(exported)
    if json:
        print_json(result)
    else:
        print_facts(str(target), facts)
    if result["check"] and result["check"]["ties"]:
        note("a tie is an image with a gate whose logit is within 1e-4 of its threshold")
    wrote([target], f"aigtool predict {target} IMAGES" if format_ == "onnx" else "")


def _must_hold(found: "Check", checked_on: str) -> None:
    if found.compared == 0 and found.flips == 0:
        raise UserError(
            f"{checked_on}: of each, a gate's logit is within 1e-4 of its threshold and was "
            "decided otherwise, so there is nothing to check by; give other images with "
            "--data, or --no-check"
        )
    if not found.holds:
        raise RuntimeError(f"the exported network is not the same on {checked_on}: {found}")


def _check_can_check(format_: str, *, check: bool, data: str | None, limit: int | None) -> None:
    """Refuse images that go unused, and what could not be run here, before what takes long."""
    if not check and (data is not None or limit is not None):
        given = "--data" if data is not None else "--limit"
        raise UserError(f"{given} with --no-check: its images are to check on; give one of the two")
    if check and format_ == "onnx":
        from aigtool.inference.exported import import_onnxruntime

        import_onnxruntime()


def _onnx(model: "Model", flops: "NetworkFlops") -> tuple[bytes, "Callable[[], Answering]"]:
    """Return an ONNX file, and what runs it."""
    from aigtool.inference.exported import ExportedNetwork
    from aigtool.inference.exporting import export_onnx

    data = export_onnx(model, flops).SerializeToString()
    return data, lambda: ExportedNetwork(data)


def _program(model: "Model", flops: "NetworkFlops") -> tuple[bytes, "Callable[[], Answering]"]:
    """Return a program's file, and what runs it."""
    from aigtool.inference.programs import ProgramNetwork, export_program, saved

    program = export_program(model, flops)
    data = saved(program, model.description, flops)
    return data, lambda: ProgramNetwork(program, model.description, flops)
