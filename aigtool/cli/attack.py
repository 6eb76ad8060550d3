"""``aigtool attack``: the accuracy that FGSM leaves, with and without JPEG."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import percent, print_json, print_table, progress, share, status, wrote
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
)


def attack(
    model: ModelFile,
    data: Data,
    epsilons: Annotated[
        str,
        typer.Option(
            "--epsilons",
            metavar="LIST",
            help="How far each pixel may move, of 0..1; 8/255 is understood.",
        ),
    ] = "0,1/255,2/255,4/255,8/255,16/255",
    jpeg: Annotated[
        str,
        typer.Option("--jpeg", metavar="LIST", help="JPEG qualities to defend with."),
    ] = "75",
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
            help="Where table and figure go; NAME-attack beside the file by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Attack the gated network and the one before gating with FGSM, on the same images.

    The attacker knows network and gates (their gradient flows straight through) and not of the
    JPEG defence.
    """
    from aigtool.output import check_output, records

    amounts, qualities = parse_epsilons(epsilons), parse_counts("JPEG quality", jpeg, most=100)
    folder = check_output(out or model.with_name(f"{model.stem}-attack"), force=force, folder=True)
    with status("loading the network"):
        from aigtool.cli.opening import open_for, open_reference, ready
        from aigtool.data.images import DataSource
        from aigtool.device import find_device
        from aigtool.models.files import load_model
        from aigtool.robustness.evaluation import Judged, attack_accuracy
        from aigtool.robustness.files import write_attack

        where = find_device(device)
        loaded = load_model(model)
        source = DataSource(data, data_dir, download, class_map)
        images = open_for(loaded, source, split, limit)
        kind, reference = open_reference(loaded, model, dense)
        gated, other = ready(loaded, where), ready(reference, where, seed)
        networks = {kind: Judged(other.network, other.flops, "open")}
        if loaded.description.gated_blocks:
            policy = loaded.description.policy
            networks = {"gated": Judged(gated.network, gated.flops, policy), **networks}
    with progress("attacking", len(images)) as advance:
        rows = attack_accuracy(
            networks,
            images,
            epsilons=amounts,
            qualities=qualities,
            batch_size=batch_size,
            workers=workers,
            progress=advance,
        )
    about = f"{images.name} {images.split}".strip() + f", {len(images)} images"
    paths = write_attack(rows, folder, about)
    if json:
        print_json({"data": about, "rows": records(rows)})
    else:
        _show(records(rows), about)
    wrote(paths, f"aigtool analyze {model} --data {data}")


def _show(rows: list[dict[str, Any]], about: str) -> None:
    names = list(dict.fromkeys(str(row["network"]) for row in rows))
    cases = list(dict.fromkeys((row["defense"], row["quality"], row["epsilon"]) for row in rows))
    cell = {(r["network"], r["defense"], r["quality"], r["epsilon"]): r for r in rows}
    table = []
    for case in cases:
        defense, quality, epsilon = case
        gates = cell.get(("gated", *case), {})
        table.append(
            [
                "none" if defense == "none" else f"JPEG {quality}",
                f"{255 * epsilon:g}/255",
                *(percent(cell[(name, *case)]["top1"]) for name in names),
                share(gates.get("execution_rate")),
                share(gates.get("gate_agreement")),
            ]
        )
    print_table(
        f"Top-1 under FGSM, {about}",
        ["defence", "epsilon", *names, "execution\nrate", "gates as on\nclean image"],
        table,
        text_columns=2,
    )
