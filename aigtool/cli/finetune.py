"""``aigtool finetune``: train gates and network to a target execution rate."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aigtool.cli.console import (
    note,
    percent,
    print_facts,
    print_json,
    progress,
    share,
    status,
    warn,
    wrote,
)
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
    Seed,
    Workers,
)
from aigtool.cli.reporting import training_progress

if TYPE_CHECKING:
    from aigtool.cli.opening import Ready
    from aigtool.data.training import TrainingImages

_RECIPE = "Recipe"


def finetune(
    model: ModelFile,
    data: Data,
    target_rate: Annotated[
        float,
        typer.Option("--target-rate", help="The mean execution rate to reach, between 0 and 1."),
    ] = 0.6,
    target: Annotated[
        Literal["network", "per-layer"],
        typer.Option(
            "--target",
            help="Hold the mean over the network to the target, or each gate: to its own, where "
            "convert --targets gave it one.",
        ),
    ] = "network",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the images.")] = 15,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="The run folder; runs/NAME by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    dense: Dense = None,
    opt: Annotated[
        str, typer.Option("--opt", help="timm's name of an optimiser.", rich_help_panel=_RECIPE)
    ] = "sgd",
    lr: Annotated[
        float, typer.Option("--lr", help="Learning rate of the network.", rich_help_panel=_RECIPE)
    ] = 0.01,
    gate_lr: Annotated[
        float,
        typer.Option("--gate-lr", help="Learning rate of the gates.", rich_help_panel=_RECIPE),
    ] = 0.1,
    momentum: Annotated[
        float, typer.Option("--momentum", rich_help_panel=_RECIPE, help="Of the optimiser.")
    ] = 0.9,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", rich_help_panel=_RECIPE, help="Of the weights.")
    ] = 1e-4,
    sched: Annotated[
        str, typer.Option("--sched", help="timm's name of a schedule.", rich_help_panel=_RECIPE)
    ] = "cosine",
    warmup_epochs: Annotated[
        int, typer.Option("--warmup-epochs", min=0, rich_help_panel=_RECIPE, help="Before it.")
    ] = 0,
    rate_weight: Annotated[
        float,
        typer.Option(
            "--rate-weight", help="Weight of the target-rate loss.", rich_help_panel=_RECIPE
        ),
    ] = 30.0,
    distill: Annotated[
        float | None,
        typer.Option(
            "--distill",
            help="Weight, 0 to 1, of learning from the network before gating; by default 0.5, or "
            "0 where its classifier is new and there is nothing to learn from.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    noise_hold: Annotated[
        float,
        typer.Option(
            "--noise-hold",
            help="Share of the run with full gate noise; then it falls to zero.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.5,
    hflip: Annotated[
        float | None,
        typer.Option(
            "--hflip",
            min=0,
            max=1,
            help="Chance of a horizontal flip; 0.5, but 0 for digits.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            "--val-fraction",
            help="Share of train/ to validate on where the data has no val/.",
            rich_help_panel="Data",
        ),
    ] = 0.1,
    limit: Limit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a converted network to a target execution rate.

    Writes a run folder: the best epoch, the network before gating, metrics, settings and a figure.
    """
    from aigtool.output import check_output
    from aigtool.training.config import FinetuneConfig

    # Checked before torch is imported, so that a slip is answered at once.
    config = FinetuneConfig(
        target_rate=target_rate,
        target=target,
        rate_weight=rate_weight,
        epochs=epochs,
        batch_size=batch_size,
        opt=opt,
        lr=lr,
        gate_lr=gate_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        sched=sched,
        warmup_epochs=warmup_epochs,
        noise_hold=noise_hold,
        distill=0.5 if distill is None else distill,
        seed=seed,
        workers=workers,
    )
    folder = check_output(out or Path("runs") / model.stem, force=force, folder=True)
    with status("loading the network"):
        from aigtool.cli.opening import open_reference, ready
        from aigtool.data.images import DataSource
        from aigtool.data.training import open_training_images
        from aigtool.device import find_device
        from aigtool.errors import UserError
        from aigtool.models.files import load_model
        from aigtool.training.loop import finetune as finetune_network
        from aigtool.training.run_folder import RunFolder

        where = find_device(device)
        loaded = load_model(model)
        if not loaded.description.gated_blocks:
            raise UserError(f"{model} has no gates: make it adaptive with aigtool convert first")
        images = open_training_images(
            loaded.description,
            DataSource(data, data_dir, download, class_map),
            val_fraction=val_fraction,
            seed=seed,
            hflip=hflip,
        )
        images = replace(images, train=images.train.limited(limit))
        kind, reference = open_reference(loaded, model, dense)
        teacher = reference.network if kind == "dense" else None
    if distill is None and teacher is None and loaded.description.new_classifier:
        config = replace(config, distill=0.0)
        note("the classifier is new, so nothing is learnt from the network before gating")
    note(f"data: {data}, {len(images.train)} images to train on, {len(images.val)} to validate on")
    _tell_before(ready(reference, where), images, kind, batch_size, workers)
    with training_progress(config, len(images.train)) as (on_step, on_epoch):
        result = finetune_network(
            loaded,
            images.train,
            images.val,
            config,
            out=folder,
            teacher=teacher,
            device=where,
            context={
                "model": str(model),
                "data": data,
                "limit": limit,
                "hflip": hflip,
                "val_fraction": val_fraction if images.held_out else None,
                "device": str(where),
            },
            on_step=on_step,
            on_epoch=on_epoch,
        )
    best = result.metrics[result.epoch - 1]
    if json:
        headline = {name: best[name] for name in _HEADLINE}
        print_json({"out": str(folder), "epoch": result.epoch, **headline})
    else:
        gates = len(loaded.description.gated_blocks)
        print_facts(
            f"Best epoch: {result.epoch} of {epochs}, on {best['val_images']} validation images",
            [
                ("top-1", percent(best["val_top1"], best["val_top1_stderr"])),
                ("execution rate", f"{share(best['val_execution_rate'])}, asked {target_rate:g}"),
                ("GFLOPs of dense", share(best["val_flops_fraction"])),
                ("adaptive gates", f"{best['val_adaptive_gates']} of {gates}"),
            ],
        )
    files = RunFolder(folder)
    wrote(
        [files.best, files.dense, files.last, files.metrics, files.config, files.figure],
        f"aigtool evaluate {files.best} --data {data}",
    )


_HEADLINE = (
    "val_correct",
    "val_images",
    "val_top1",
    "val_top1_stderr",
    "val_execution_rate",
    "val_flops_fraction",
    "val_adaptive_gates",
)

SEEN_LOSS = 0.02
"""A cross entropy under this on held-out images says that the weights have learned them."""


def _tell_before(
    before: "Ready", images: "TrainingImages", kind: str, batch_size: int, workers: int
) -> None:
    """Say how accurate the network is before, and whether it has seen its validation images."""
    from aigtool.trace import collect_trace

    with progress(f"evaluating {kind}", len(images.val)) as advance:
        trace = collect_trace(
            before.network,
            images.val,
            flops=before.flops,
            policy="open",
            batch_size=batch_size,
            workers=workers,
            progress=advance,
        )
    summary, loss = trace.summary(), float(trace.images["loss"].mean())
    note(
        f"{kind}: top-1 {percent(summary['top1'], summary['top1_stderr'])} on the validation "
        f"images ({summary['correct']} of {summary['images']}), cross entropy {loss:.3f}"
    )
    if images.held_out and loss < SEEN_LOSS:
        warn(
            f"the weights have probably seen the images held out of train/ (cross entropy "
            f"{loss:.4f}): accuracy there says little; give the data a val/ of new images"
        )
