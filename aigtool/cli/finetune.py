"""``aigtool finetune``: train gates and network to a target execution rate."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigtool.cli.console import note, percent, print_facts, print_json, share, status, wrote
from aigtool.cli.grouping import takes_override
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
    Quiet,
    Seed,
    TrainLimit,
    ValFraction,
    Workers,
)
from aigtool.cli.recipe import CONTEXT, Recipe, as_kept, read_recipe, takes_recipe
from aigtool.cli.reporting import of_data, told_how_to_go_on, training_progress, warn_of_landing
from aigtool.launch import place
from aigtool.models.override import InputOverride
from aigtool.training.config import FinetuneConfig, read_settings

if TYPE_CHECKING:
    from aigtool.budget import Budget


@takes_override
@takes_recipe()
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
    val_fraction: ValFraction = 0.1,
    limit: TrainLimit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    device: Device = "auto",
    batch_size: BatchSize = FinetuneConfig.batch_size,
    workers: Workers = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    recipe: Recipe,
    override: InputOverride,
) -> None:
    """Fine-tune a converted network to a budget: a target execution rate, or a share of GFLOPs.

    Writes a run folder: the best epoch, the network before gating, metrics, settings and a figure.
    Launched by torchrun, several processes share out each batch among them.
    """
    settings = {**locals(), **recipe.training, **recipe.augmentation, **vars(override)}
    from aigtool.errors import UserError
    from aigtool.output import check_output

    if resume is not None:
        settings |= _stored(resume, ctx, settings)
    elif model is None or data is None:
        raise UserError("expected MODEL and --data, or --resume with the folder of a run")
    # Checked before torch is imported, so that a slip is answered at once.
    config, augmentation = read_recipe(settings)
    _, count = place()
    if count > 1 and settings["download"]:
        raise UserError(f"--download in {count} processes: download the data first, in one")
    model, data = Path(settings["model"]), str(settings["data"])
    folder = resume or check_output(out or Path("runs") / model.stem, force=force, folder=True)
    if resume is None:
        _check_apart(folder, model, dense)
    with status("loading the network"):
        from aigtool.cli.preparing import prepare, tell_before
        from aigtool.training.loop import finetune as finetune_network
        from aigtool.training.options import check_options
        from aigtool.training.processes import launched
        from aigtool.training.run_folder import RunFolder

        prepared = prepare(settings, augmentation)
        check_options(prepared.model, config, prepared.teacher)
    images = prepared.images
    with launched(prepared.device) as processes:
        processes.check_batch(config.batch_size, config.aug_repeats)
        processes.by_first(partial(tell_before, prepared, config))
        with (
            told_how_to_go_on(
                f"{_launcher()}aigtool finetune --resume {folder}", RunFolder(folder).last
            ),
            training_progress(config, len(images.train)) as callbacks,
        ):
            result = finetune_network(
                prepared.model,
                images.train,
                images.val,
                config,
                out=folder,
                teacher=prepared.teacher,
                resume=resume is not None,
                device=processes.device,
                context=prepared.context(settings),
                callbacks=callbacks,
            )
    if not processes.is_first:
        return
    if not result.went_on:
        note(f"the run in {folder} was at its end: nothing was left to train")
    best = result.metrics[result.epoch - 1]
    if result.budget is not None and "val_uncalibrated" in best:
        warn_of_landing(result.budget, best["val_uncalibrated"])
    if json:
        headline = {name: best[name] for name in _HEADLINE}
        print_json({"out": str(folder), "epoch": result.epoch, **headline})
    else:
        print_facts(
            f"Best epoch: {result.epoch} of {config.epochs}, the last within a standard error of "
            f"the highest top-1 on {best['val_images']} validation images",
            [
                ("asked", _asked(result.budget, config)),
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
        f"aigtool evaluate {files.best} "
        f"{of_data(data, settings['data_dir'], settings['class_map'])}",
    )


def _asked(budget: "Budget | None", config: FinetuneConfig) -> str:
    if budget is None:
        return "every block"
    return f"{budget}{' on average, each gate its own' * config.is_per_layer}"


def _launcher() -> str:
    _, count = place()
    return f"torchrun --nproc-per-node {count} -m " * (count > 1)


def _check_apart(folder: Path, *files: Path | None) -> None:
    """Refuse to replace the run folder that a network comes from."""
    from aigtool.errors import UserError

    for file in files:
        if file is not None and file.resolve().parent == folder.resolve():
            raise UserError(
                f"output {folder} holds {file}, which the run starts from and would replace: "
                "expected another folder"
            )


def _stored(folder: Path, ctx: typer.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run's settings, and refuse others that were given beside ``--resume``."""
    from aigtool.errors import UserError

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"--resume {folder}: no run there; expected a folder that aigtool finetune wrote"
        )
    values = read_settings(path)
    stored: dict[str, Any] = {name: values.get(name) for name in CONTEXT}
    if not (stored["model"] and stored["data"]):
        raise UserError(
            f"--resume {folder}: {path.name} names no model and data; expected a folder that the "
            "command wrote (from Python, finetune(..., resume=True) goes on with others)"
        )
    stored |= {name: value for name, value in values["options"].items() if name != "workers"}
    for name in given:
        source = ctx.get_parameter_source(name)
        is_given = source is not None and source.name == "COMMANDLINE"
        if name in ("force", "out") and is_given:
            raise UserError(f"--{name} was given with --resume, which writes to its own folder")
        if is_given and name in stored and as_kept(name, given[name]) != stored[name]:
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
