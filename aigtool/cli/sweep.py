"""``aigtool sweep``: several budgets and seeds, and accuracy over GFLOPs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import percent, print_json, print_table, share, status, wrote
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
    Json,
    ModelFile,
    Quiet,
    TrainLimit,
    ValFraction,
    Workers,
    parse_budgets,
    parse_counts,
)
from aigtool.cli.recipe import Recipe, read_recipe, takes_recipe
from aigtool.cli.reporting import (
    gate_counts,
    named,
    of_data,
    paired,
    told_how_to_go_on,
    training_progress,
)
from aigtool.errors import UserError
from aigtool.models.override import InputOverride
from aigtool.output import check_output, records
from aigtool.training.config import FinetuneConfig


@takes_override
@takes_recipe("targets")
def sweep(
    model: ModelFile,
    data: Data,
    target_flops: Annotated[
        str | None,
        typer.Option(
            "--target-flops",
            metavar="LIST",
            help="Executed GFLOPs over those of the dense network, such as 0.4,0.6,0.8.",
        ),
    ] = None,
    target_rate: Annotated[
        str | None,
        typer.Option(
            "--target-rate", metavar="LIST", help="Mean execution rates over gates, instead."
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option("--seeds", metavar="LIST", help="Of everything random; a run each a target."),
    ] = "0,1,2",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            help="Model file of another network to show beside, such as a smaller dense one; may "
            "be given several times.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Which part of the data to judge by; the validation images by default, by which "
            "each run's best epoch is chosen too.",
            rich_help_panel="Data",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="The folder of the run folders, table and figure; sweeps/NAME by default.",
            rich_help_panel="Output",
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
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    recipe: Recipe,
    override: InputOverride,
) -> None:
    """Fine-tune to several budgets with several seeds, and compare them with dense networks.

    Each run is what finetune does. Given again, it goes on where it stopped: runs that are done
    stay, one that was begun is resumed, new targets and seeds are added.
    """
    budgets = parse_budgets(target_rate, target_flops)
    numbers = parse_counts("seeds", seeds, least=0, most=2**32 - 1, different=True)
    settings = {**locals(), **recipe.training, **recipe.augmentation, **vars(override)}
    config, augmentation = read_recipe(
        settings | {"target_rate": None, "target_flops": None, "seed": numbers[0]}
    )
    folder = out or Path("sweeps") / model.stem
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob("*/config.yaml")):
        raise UserError(
            f"output {folder} holds other things than runs: expected a new or empty folder, or "
            "that of a sweep to go on with"
        )
    check_output(folder, force=True, folder=True)
    with status("loading the network"):
        from aigtool.cli.opening import collect, open_for, ready_to_serve
        from aigtool.cli.preparing import prepare, tell_before
        from aigtool.models.files import check_comparable, load_model
        from aigtool.training.options import check_options
        from aigtool.training.sweep import (
            GATED,
            Point,
            point_rows,
            run_points,
            target_rows,
            write_sweep,
        )

        prepared = prepare(settings, augmentation)
        kind, reference = prepared.reference
        trained = GATED if config.baseline == "none" else config.baseline
        networks = {kind: reference}
        for name, path in named(compare or (), taken=(kind, trained)).items():
            networks[name] = load_model(path).overridden(override)
            check_comparable(prepared.model.description, networks[name].description, path)
            if networks[name].description.gated_blocks:
                raise UserError(
                    f"network {path} has gates: expected one without to compare with; "
                    f"`aigtool convert {path} --strip` takes them out"
                )
        points = [Point(budget, seed) for budget in budgets for seed in numbers]
        for point in points[:: len(numbers)]:  # one a budget, before any is trained
            check_options(prepared.model, point.config(config), prepared.teacher)
        images = prepared.images
        judged = images.val if split is None else open_for(prepared.model, prepared.source, split)
    tell_before(prepared, config)
    traces = {}
    runs_done = run_points(
        prepared.model,
        images.train,
        images.val,
        points,
        config,
        out=folder,
        teacher=prepared.teacher,
        device=prepared.device,
        context=prepared.context(settings),
        watch=lambda point, config: training_progress(config, len(images.train), point.name),
    )
    with told_how_to_go_on("the same command again"):
        for point, best in runs_done:
            subject = ready_to_serve(load_model(best), prepared.device)
            label = f"evaluating {point.name}"
            traces[point] = collect(label, subject, judged, "argmax", batch_size, workers)
    others = {
        name: collect(
            f"evaluating {name}",
            ready_to_serve(network, prepared.device),
            judged,
            "open" if network is reference else network.description.policy,
            batch_size,
            workers,
        )
        for name, network in networks.items()
    }
    traces = dict(sorted(traces.items()))
    runs = point_rows(traces, others, kind, trained)
    targets = target_rows(traces, others[kind])
    about = f"{judged.name} {judged.split}".strip() + f", {len(judged)} images"
    paths = write_sweep(runs, targets, folder, about)
    if json:
        print_json({"data": about, "runs": records(runs), "targets": records(targets)})
    else:
        _show(records(runs), records(targets), kind, about)
    best = folder / points[0].name / "best.safetensors"
    wrote(paths, f"aigtool evaluate {best} {of_data(data, data_dir, class_map)}")


def _show(runs: list[dict[str, Any]], targets: list[dict[str, Any]], kind: str, about: str) -> None:
    rows = [
        [
            str(row["network"]),
            "1",
            f"{row['correct']}",
            percent(row["top1"], row["top1_stderr"]),
            paired(row),
            share(row["flops_fraction"]),
            "-",
        ]
        for row in runs
        if row["target"] is None
    ]
    rows += [
        [
            f"{row['unit']} {row['target']:g}",
            str(row["runs"]),
            f"{row['correct']:.1f}",
            percent(row["top1"], row["top1_stdev"]),
            paired(row),
            f"{share(row['flops_fraction'])} ± {share(row['flops_fraction_stdev'])}",
            gate_counts(row),
        ]
        for row in targets
    ]
    print_table(
        f"{about}; of several seeds the mean",
        [
            *("", "runs", "right", "top-1\n± seeds", f"paired with\n{kind}: points\n± images"),
            *("GFLOPs\nof dense\n± images", "gates\nadaptive\n/on/off"),
        ],
        rows,
    )
