"""``aigtool attack``: the accuracy that attacks leave, and what they make a network execute."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aigtool.cli.console import status, wrote
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
    Seed,
    Split,
    Workers,
    parse_counts,
    parse_epsilons,
    parse_names,
)
from aigtool.errors import UserError
from aigtool.models.override import InputOverride

Gradient = Literal["straight-through", "frozen", "worst"]
GRADIENTS: tuple[Gradient, ...] = ("straight-through", "frozen", "worst")
Knowing = Literal["static", "adaptive"]
ATTACKERS: tuple[Knowing, ...] = ("static", "adaptive")
NONE = "none"


def _list(value: str) -> str:
    if value == "list":
        from aigtool.cli.attack_steps import show_attacks

        show_attacks()
        raise typer.Exit
    return value


@takes_override
def attack(
    model: ModelFile,
    data: Data,
    attacks: Annotated[
        str,
        typer.Option(
            "--attack",
            metavar="LIST",
            callback=_list,
            is_eager=True,
            help="fgsm, pgd, noise, foolbox:NAME, torchattacks:NAME, several with commas between; "
            "'list' shows them all.",
            rich_help_panel="Attack",
        ),
    ] = "fgsm",
    epsilons: Annotated[
        str,
        typer.Option(
            "--epsilons",
            metavar="LIST",
            help="How far an image may move, in pixels of 0..1; 8/255 is understood.",
            rich_help_panel="Attack",
        ),
    ] = "0,1/255,2/255,4/255,8/255,16/255",
    norm: Annotated[
        Literal["linf", "l2"] | None,
        typer.Option(
            "--norm",
            help="By which that is measured: the largest change of a pixel, or the length of all; "
            "by default the attack's own, which is linf for ours.",
            rich_help_panel="Attack",
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", min=1, help="Gradients that PGD takes.", rich_help_panel="Attack"),
    ] = 20,
    step_size: Annotated[
        float | None,
        typer.Option(
            "--step-size",
            help="Of PGD, in pixels of 0..1; by default 2.5 times epsilon over steps.",
            rich_help_panel="Attack",
        ),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            min=0,
            help="Random points that PGD starts from; 0 starts at the image.",
            rich_help_panel="Attack",
        ),
    ] = 0,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="CLASS|least-likely",
            help="What fgsm and pgd should make the answer; by default anything wrong.",
            rich_help_panel="Attack",
        ),
    ] = None,
    gate_gradient: Annotated[
        str,
        typer.Option(
            "--gate-gradient",
            metavar="LIST",
            help="What the attack sees of gates: straight-through, their gradient; frozen, their "
            "decisions on the clean image; worst, an image is wrong if either makes it wrong.",
            rich_help_panel="Attack",
        ),
    ] = "straight-through",
    eight_bit: Annotated[
        bool,
        typer.Option(
            "--eight-bit",
            help="Round attacked images to 8 bits, as a file holds them, within epsilon.",
            rich_help_panel="Attack",
        ),
    ] = False,
    jpeg: Annotated[
        str,
        typer.Option(
            "--jpeg",
            metavar="LIST",
            help="JPEG qualities to defend with, or none.",
            rich_help_panel="Defence",
        ),
    ] = "75",
    attacker: Annotated[
        str,
        typer.Option(
            "--attacker",
            metavar="LIST",
            help="static, who does not know of the defence; adaptive, who does.",
            rich_help_panel="Defence",
        ),
    ] = "static",
    compute: Annotated[
        str | None,
        typer.Option(
            "--compute",
            metavar="LIST",
            help="Epsilons of attacks that raise, or lower, what is executed while the answer "
            "stays, or none; 2/255,8/255 by default for a network with gates.",
            rich_help_panel="Compute and checks",
        ),
    ] = None,
    subset: Annotated[
        int,
        typer.Option(
            "--subset",
            metavar="N",
            min=1,
            help="Images, spread evenly, for attacks on compute and the sanity checks.",
            rich_help_panel="Compute and checks",
        ),
    ] = 200,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="FILE|cifar10",
            help="Groups of classes whose execution under attack is told apart, as for analyze.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    dense: Dense = None,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    workers: Workers = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where tables and figures go; NAME-attack beside the file by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images",
            help="Save attacked images as PNG, under images/ there; they are judged as saved, in "
            "8 bits.",
            rich_help_panel="Output",
        ),
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    override: InputOverride,
) -> None:
    """Attack the gated network and the one before gating, on the same images.

    The attacker knows the network; of its gates by default the gradient, straight through, and of
    the JPEG defence nothing. Sanity checks tell whether the figures can be believed.
    """
    from aigtool.output import check_output

    amounts = parse_epsilons("epsilon", epsilons)
    qualities = [] if jpeg == NONE else parse_counts("JPEG quality", jpeg, most=100)
    gradients = parse_names("gate-gradient", gate_gradient, GRADIENTS)
    attackers = parse_names("attacker", attacker, ATTACKERS)
    if "adaptive" in attackers and not qualities:
        raise UserError("attacker adaptive: expected a JPEG quality to know of, such as --jpeg 75")
    slowed = None
    if compute is not None:
        slowed = [] if compute == NONE else parse_epsilons("compute", compute)
    folder = check_output(out or model.with_name(f"{model.stem}-attack"), force=force, folder=True)
    with status("loading the network"):
        from aigtool.cli.attack_steps import (
            Wanted,
            check_amounts,
            find_subjects,
            labelled,
            named_attacks,
            plan_attack,
            show,
        )
        from aigtool.cli.console import print_json, progress
        from aigtool.data.images import DataSource
        from aigtool.device import find_device
        from aigtool.robustness.files import as_json, write_attack
        from aigtool.robustness.pictures import remove_images
        from aigtool.robustness.report import report_attack

        wanted = Wanted(norm, steps, step_size, restarts, target is not None)
        chosen = named_attacks(attacks, wanted)
        check_amounts(chosen, amounts, slowed or ())
        source = DataSource(data, data_dir, download, class_map)
        subjects = find_subjects(
            model, dense, override, source, split, limit, find_device(device), seed
        )
        plan = plan_attack(
            subjects,
            epsilons=amounts,
            attacks=chosen,
            qualities=qualities,
            attackers=attackers,
            gradients=gradients,
            target=target,
            is_eight_bit=eight_bit or save_images,
            compute=slowed,
            steps=steps,
            subset=subset,
            seed=seed,
        )
        named = labelled(groups, subjects.images.classes)
    report = report_attack(
        subjects.networks,
        subjects.images,
        plan,
        groups=named,
        served=subjects.served,
        save_images=folder / "images" if save_images else None,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    paths = write_attack(report, folder)
    if not save_images:
        remove_images(folder / "images")
    if json:
        print_json(as_json(report))
    else:
        show(report)
    wrote(
        [*paths, folder / "images"] if save_images else paths,
        f"aigtool report {folder} --out report.html",
    )
