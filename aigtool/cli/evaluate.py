"""``aigtool evaluate``: accuracy, execution rates, GFLOPs and images a second."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import (
    print_json,
    print_table,
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
    PolicyOption,
    Quiet,
    Seed,
    Split,
    Workers,
)
from aigtool.cli.reporting import of_data, print_summaries
from aigtool.models.override import InputOverride


@takes_override
def evaluate(
    model: ModelFile,
    data: Data,
    split: Split = None,
    limit: Limit = None,
    data_dir: DataDir = None,
    download: Download = False,
    class_map: ClassMap = None,
    policy: PolicyOption = None,
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
            metavar="FILE",
            help="Write the execution trace, as Parquet; analyze reads it.",
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
    """Measure a network on images: accuracy, execution rates, GFLOPs, images a second.

    The network before gating is measured beside it on the same images.
    """
    from aigtool.output import check_output

    if out is not None:
        check_output(out, force=force, suffix=".parquet")
    with status("loading the network"):
        from aigtool.cli.opening import collect, open_for, open_reference, ready_to_serve
        from aigtool.data.images import DataSource
        from aigtool.device import find_device
        from aigtool.models.files import load_model
        from aigtool.trace import accuracy_difference

        where = find_device(device)
        loaded = load_model(model).overridden(override)
        chosen = policy or loaded.description.policy
        source = DataSource(data, data_dir, download, class_map)
        images = open_for(loaded, source, split, limit)
        subject = ready_to_serve(loaded, where, seed)
        kind, reference = open_reference(loaded, model, dense, override)
    trace = collect("evaluating", subject, images, chosen, batch_size, workers, out)
    summary = trace.summary()
    beside: dict[str, Any] | None = None
    if reference is not loaded or (trace.gates and chosen != "open"):
        other = ready_to_serve(reference, where)
        label = f"evaluating {kind}"
        compared = collect(label, other, images, "open", batch_size, workers)
        beside = compared.summary()
        difference, error = accuracy_difference([trace], compared)
        summary |= {"difference": difference, "difference_stderr": error}
    if json:
        reference_row = None if beside is None else {"network": kind, **beside}
        print_json({**summary, "data": trace.source, "reference": reference_row})
    else:
        _show(summary, beside, kind, trace.source)
    if out is None:
        wrote([], f"aigtool analyze {model} {of_data(data, data_dir, class_map)}")
    else:
        wrote([out], f"aigtool analyze {out}")
    if trace.gates and chosen in ("argmax", "sampled") and not summary["adaptive_gates"]:
        warn("no gate is adaptive: every image takes the same blocks; finetune the network")


def _show(summary: dict[str, Any], beside: dict[str, Any] | None, kind: str, source: str) -> None:
    columns = {f"policy {summary['policy']}" if summary["gates"] else "no gates": summary}
    if beside is not None:
        columns[kind] = beside
    print_summaries(f"{source}, {summary['images']} images", columns)
    if summary["gates"]:
        print_table(
            "",
            ["gate", "execution rate", "target"],
            [
                [gate["name"], share(gate["rate"]), share(gate["target"])]
                for gate in summary["gates"]
            ],
        )
