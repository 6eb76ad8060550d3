"""``aigtool finetune``: train gates and network to a target execution rate."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aigtool.cli.console import (
    note,
    percent,
    print_facts,
    print_json,
    share,
    status,
    warn,
    wrote,
)
from aigtool.cli.options import (
    BatchSize,
    ClassMap,
    DataDir,
    Debug,
    Dense,
    Device,
    Download,
    Force,
    Json,
    Limit,
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
    ctx: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="Model file that convert or finetune wrote."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER|digits|NAME",
            help="A folder with train/ and perhaps val/, each with a folder a class; 'digits'; or "
            "a timm data set name such as torch/cifar10.",
            rich_help_panel="Data",
        ),
    ] = None,
    target_rate: Annotated[
        float | None,
        typer.Option(
            "--target-rate", help="The mean execution rate over gates to end with; 0.6 by default."
        ),
    ] = None,
    target_flops: Annotated[
        float | None,
        typer.Option(
            "--target-flops",
            help="Executed GFLOPs over those of the dense network to end with, instead.",
        ),
    ] = None,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Go on with the run in this folder, from its last saved step; it knows its "
            "options.",
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
    band: Annotated[
        float,
        typer.Option(
            "--band",
            help="Weight of the loss that keeps each gate's rate off 0 and 1.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.0,
    information: Annotated[
        float,
        typer.Option(
            "--information",
            help="Weight of the loss that keeps decisions telling images apart.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.0,
    distill: Annotated[
        float | None,
        typer.Option(
            "--distill",
            help="Weight, 0 to 1, of learning from the network before gating; by default 0.5, or "
            "0 where its classifier is new and there is nothing to learn from.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    distill_temperature: Annotated[
        float,
        typer.Option(
            "--distill-temperature",
            help="Of both networks' softmax in that loss.",
            rich_help_panel=_RECIPE,
        ),
    ] = 1.0,
    smoothing: Annotated[
        float, typer.Option("--smoothing", help="Label smoothing.", rich_help_panel=_RECIPE)
    ] = 0.0,
    grad_accum_steps: Annotated[
        int,
        typer.Option(
            "--grad-accum-steps", min=1, help="Minibatches a step.", rich_help_panel=_RECIPE
        ),
    ] = 1,
    clip_grad: Annotated[
        float,
        typer.Option(
            "--clip-grad",
            help="Clip gradients to this norm; 0 leaves them.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.0,
    train: Annotated[
        Literal["all", "gates"],
        typer.Option(
            "--train", help="The whole network, or the gates alone.", rich_help_panel=_RECIPE
        ),
    ] = "all",
    noise_hold: Annotated[
        float,
        typer.Option(
            "--noise-hold",
            help="Share of the run with full gate noise.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.5,
    noise_end: Annotated[
        float,
        typer.Option(
            "--noise-end",
            help="Share of the run at which it has fallen to zero.",
            rich_help_panel=_RECIPE,
        ),
    ] = 1.0,
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
    """Fine-tune a converted network to a budget: a target execution rate, or a share of GFLOPs.

    Writes a run folder: the best epoch, the network before gating, metrics, settings and a figure.
    """
    settings = dict(locals())
    from aigtool.errors import UserError
    from aigtool.output import check_output
    from aigtool.training.config import FinetuneConfig

    if resume is not None:
        settings |= _stored(resume, ctx, settings)
    elif model is None or data is None:
        raise UserError("expected MODEL and --data, or --resume with the folder of a run")
    # Checked before torch is imported, so that a slip is answered at once.
    names = [field.name for field in fields(FinetuneConfig)]
    chosen = {name: settings[name] for name in names if settings.get(name) is not None}
    config = FinetuneConfig(**chosen)
    model, data = Path(settings["model"]), str(settings["data"])
    folder = resume or check_output(out or Path("runs") / model.stem, force=force, folder=True)
    with status("loading the network"):
        from aigtool.cli.opening import open_reference, ready
        from aigtool.data.images import DataSource
        from aigtool.data.training import open_training_images
        from aigtool.device import find_device
        from aigtool.models.files import load_model
        from aigtool.training.loop import finetune as finetune_network
        from aigtool.training.run_folder import RunFolder

        where = find_device(device)
        loaded = load_model(model)
        if not loaded.description.gated_blocks:
            raise UserError(f"{model} has no gates: make it adaptive with aigtool convert first")
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        if resume is not None and settings["model_sha256"] != digest:
            raise UserError(
                f"{model} is not the model that the run in {resume} was started with: put that "
                "one back, or start a new run"
            )
        images = open_training_images(
            loaded.description,
            DataSource(data, settings["data_dir"], settings["download"], settings["class_map"]),
            val_fraction=settings["val_fraction"],
            seed=config.seed,
            hflip=settings["hflip"],
        )
        images = replace(images, train=images.train.limited(settings["limit"]))
        given = None if settings["dense"] is None else Path(settings["dense"])
        kind, reference = open_reference(loaded, model, given)
        teacher = reference.network if kind == "dense" else None
    if settings["distill"] is None and teacher is None and loaded.description.new_classifier:
        config = replace(config, distill=0.0)
        note("the classifier is new, so nothing is learnt from the network before gating")
    note(f"data: {data}, {len(images.train)} images to train on, {len(images.val)} to validate on")
    _tell_before(ready(reference, where), images, kind, config.batch_size, config.workers)
    with (
        _told_how_to_go_on(folder),
        training_progress(config, len(images.train)) as (on_step, on_epoch),
    ):
        result = finetune_network(
            loaded,
            images.train,
            images.val,
            config,
            out=folder,
            teacher=teacher,
            resume=resume is not None,
            device=where,
            context={name: _plain(settings[name]) for name in _CONTEXT}
            | {"model_sha256": digest, "device": str(where)},
            on_step=on_step,
            on_epoch=on_epoch,
        )
    best = result.metrics[result.epoch - 1]
    if json:
        headline = {name: best[name] for name in _HEADLINE}
        print_json({"out": str(folder), "epoch": result.epoch, **headline})
    else:
        print_facts(
            f"Best epoch: {result.epoch} of {config.epochs}, on {best['val_images']} validation "
            "images",
            [
                ("asked", str(config.budget)),
                ("top-1", percent(best["val_top1"], best["val_top1_stderr"])),
                ("execution rate", share(best["val_execution_rate"])),
                ("GFLOPs of dense", share(best["val_flops_fraction"])),
                ("spread over images", share(best["val_flops_fraction_stdev"])),
                (
                    "gates",
                    f"{best['val_adaptive_gates']} adaptive, {best['val_always_on_gates']} always "
                    f"on, {best['val_always_off_gates']} always off",
                ),
            ],
        )
    files = RunFolder(folder)
    wrote(
        [files.best, files.dense, files.last, files.metrics, files.config, files.figure],
        f"aigtool evaluate {files.best} --data {data}",
    )


@contextmanager
def _told_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"stopped; go on with: aigtool finetune --resume {folder}")
        raise


_CONTEXT = (
    *("model", "data", "dense", "data_dir", "download", "class_map"),
    *("limit", "hflip", "val_fraction"),
)


def _plain(value: Any) -> Any:
    """Return what YAML keeps; a file or folder is found again from another folder."""
    is_folder = isinstance(value, str) and value != "digits" and Path(value).is_dir()
    return str(Path(value).resolve()) if is_folder or isinstance(value, Path) else value


def _stored(folder: Path, ctx: typer.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run's settings, and refuse others that were given beside ``--resume``."""
    import yaml

    from aigtool.errors import UserError

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"--resume {folder}: no run there; expected a folder that aigtool finetune wrote"
        )
    values = yaml.safe_load(path.read_text())
    stored: dict[str, Any] = {name: values.get(name) for name in (*_CONTEXT, "model_sha256")}
    stored |= {name: value for name, value in values["options"].items() if name != "workers"}
    for name in given:
        source = ctx.get_parameter_source(name)
        is_given = source is not None and source.name == "COMMANDLINE"
        if name in ("force", "out") and is_given:
            raise UserError(f"--{name} was given with --resume, which writes to its own folder")
        if is_given and name in stored and _plain(given[name]) != stored[name]:
            option = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise UserError(
                f"--resume {folder}: the run was started with {option} {stored[name]}, not "
                f"{given[name]}; leave it out, or start a new run"
            )
    return stored


_HEADLINE = (
    "val_correct",
    "val_images",
    "val_top1",
    "val_top1_stderr",
    "val_execution_rate",
    "val_flops_fraction",
    "val_flops_fraction_stdev",
    "val_adaptive_gates",
    "val_always_on_gates",
    "val_always_off_gates",
)

SEEN_LOSS = 0.02
"""A cross entropy under this on held-out images says that the weights have learned them."""


def _tell_before(
    before: "Ready", images: "TrainingImages", kind: str, batch_size: int, workers: int
) -> None:
    """Say how accurate the network is before, and whether it has seen its validation images."""
    from aigtool.cli.opening import collect

    trace = collect(f"evaluating {kind}", before, images.val, "open", batch_size, workers)
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
