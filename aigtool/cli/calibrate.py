"""``aigtool calibrate``: thresholds that keep a network to a budget, without training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import (
    note,
    percent,
    print_json,
    print_table,
    progress,
    share,
    status,
    warn,
    wrote,
)
from aigtool.cli.grouping import takes_override
from aigtool.cli.options import (
    BatchSize,
    ClassMap,
    Data,
    DataDir,
    Debug,
    Dense,
    Device,
    Download,
    Force,
    Json,
    Limit,
    ModelFile,
    Quiet,
    Workers,
    parse_budgets,
)
from aigtool.cli.reporting import gate_counts, of_data
from aigtool.models.override import InputOverride
from aigtool.output import check_output

REACHED = 0.01
"""How much of a budget may be left before a warning says so."""


@takes_override
def calibrate(
    model: ModelFile,
    data: Data,
    target_flops: Annotated[
        str | None,
        typer.Option(
            "--target-flops",
            metavar="LIST",
            help="Executed GFLOPs over those of the dense network, such as 0.6; several with "
            "commas between give a model file each.",
        ),
    ] = None,
    target_rate: Annotated[
        str | None,
        typer.Option(
            "--target-rate", metavar="LIST", help="Mean execution rates over gates, instead."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER",
            help="The model file to write, or the folder for several; beside MODEL by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    dense: Dense = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Which part of the data to choose by: val/ by default, or the folder itself "
            "where it has no parts.",
            rich_help_panel="Data",
        ),
    ] = None,
    limit: Limit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    workers: Workers = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    override: InputOverride,
) -> None:
    """Set the gates' thresholds on validation images so that the network keeps to a budget.

    No weight is changed: thresholds are, gate by gate, where it costs the least. The images are
    val/, or what --split says: neither those that the network was trained on nor those it is
    judged by.
    """
    budgets = parse_budgets(target_rate, target_flops)
    files = [model.with_name(f"{model.stem}-{b.unit}{b.share:g}.safetensors") for b in budgets]
    if out is not None:
        files = [out] if len(files) == 1 else [out / file.name for file in files]
    targets = [check_output(file, force=force, suffix=".safetensors") for file in files]
    with status("loading the network"):
        from aigtool.calibration import calibrate as calibrate_network
        from aigtool.calibration import kept_thresholds
        from aigtool.cli.opening import collect, open_for, open_reference, ready
        from aigtool.data.images import DataSource, validation_split
        from aigtool.device import find_device
        from aigtool.models.files import load_model, save_model

        where = find_device(device)
        loaded = load_model(model).overridden(override)
        source = DataSource(data, data_dir, download, class_map)
        images = open_for(loaded, source, split or validation_split(source), limit)
        note(f"data: {images.name} {images.split}, {len(images)} images")
        subject = ready(loaded, where)
        for budget in budgets:
            budget.check(subject.flops)
        kind, reference = open_reference(loaded, model, dense, override)
        other = ready(reference, where)
    before = collect(f"evaluating {kind}", other, images, "open", batch_size, workers).summary()
    columns, rows = {kind: before}, []
    for budget, target in zip(budgets, targets, strict=True):
        with kept_thresholds(subject.network):
            with _way(f"looking for thresholds, {budget}") as advance:
                found = calibrate_network(
                    subject.network,
                    images,
                    budget,
                    subject.flops,
                    batch_size=batch_size,
                    workers=workers,
                    progress=advance,
                )
            summary = collect(str(budget), subject, images, "argmax", batch_size, workers).summary()
            if found.spent < budget.share - REACHED:
                warn(
                    f"{budget}: {share(found.spent)} is the nearest below that was found; gates "
                    "that many images share a logit of execute all of them or none"
                )
            columns[str(budget)] = summary
            step = {
                f"target_{budget.unit}": budget.share,
                "data": f"{images.name} {images.split}".strip(),
                **{name: summary[name] for name in _STORED},
            }
            save_model(target, loaded.network, loaded.description.after("calibrate", **step))
        rows.append({"out": str(target), "shifts": list(found.shifts), **step, **summary})
    if json:
        print_json({"model": str(model), "rows": rows, "reference": {"network": kind, **before}})
    else:
        print_table(
            f"{images.name} {images.split}, {len(images)} images",
            [
                "",
                "top-1",
                "right",
                "rate",
                "GFLOPs\nof dense",
                "spread",
                "gates adaptive\n/on/off",
            ],
            [[name, *_cells(summary)] for name, summary in columns.items()],
        )
    wrote(targets, f"aigtool evaluate {targets[0]} {of_data(data, data_dir, class_map)}")


@contextmanager
def _way(label: str) -> Iterator[Callable[[float], None]]:
    """Show, in percent, how much of something is done, which is told as 0..1."""
    done = 0
    with progress(label, 100, "%") as advance:

        def tell(part: float) -> None:
            nonlocal done
            now = round(100 * part)
            advance(now - done)
            done = now

        yield tell


def _cells(summary: dict[str, Any]) -> list[str]:
    return [
        percent(summary["top1"], summary["top1_stderr"]),
        str(summary["correct"]),
        share(summary["execution_rate"]),
        share(summary["flops_fraction"]),
        share(summary["flops_fraction_stdev"]),
        gate_counts(summary),
    ]


_STORED = ("correct", "images", "execution_rate", "flops_fraction")
