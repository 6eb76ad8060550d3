"""``aigtool convert``: gates before the residual blocks of a network."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from aigtool.cli.console import note, print_facts, print_json, status, warn, wrote
from aigtool.cli.grouping import takes_input
from aigtool.cli.options import Debug, Force, Json, Quiet
from aigtool.errors import UserError
from aigtool.models.override import InputOverride
from aigtool.output import check_output

GATE_WIDTH = 16
_SUFFIX = ".safetensors"


@takes_input
def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name: resnet50.a1_in1k (timm), torchvision:resnet50, cifar_resnet56, "
            "hf-hub:..., local-dir:...; with --strip, a model file.",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Your own weights: .safetensors, or what torch.save wrote (.pth, .pt, .th, .bin).",
            rich_help_panel="Weights",
        ),
    ] = None,
    use_ema: Annotated[
        bool,
        typer.Option(
            "--use-ema",
            help="Take the averaged weights where the file has both.",
            rich_help_panel="Weights",
        ),
    ] = False,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained",
            help="Fetch the published weights; a tag in the name says which.",
            rich_help_panel="Weights",
        ),
    ] = False,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes",
            min=1,
            help="Outputs of the classifier; one of another size than the weights' starts anew.",
            rich_help_panel="Weights",
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names",
            metavar="FILE",
            help="Names of the classes in the order of the outputs, one a line; by default those "
            "that the network was published with (ImageNet's are WordNet ids).",
            rich_help_panel="Weights",
        ),
    ] = None,
    ungated: Annotated[
        list[str] | None,
        typer.Option(
            "--ungated",
            metavar="PATTERN",
            help="Blocks to leave without a gate: first:N, last:N, downsample, or a pattern of "
            "names such as 'layer1.*'; several with commas between.",
            rich_help_panel="Gates",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="LIST",
            help="An execution rate for each block, with commas between, or the paper's "
            "resnet50-eccv or resnet101-eccv (:0.4 after it sets its t, else 0.5). 1 means no "
            "gate.",
            rich_help_panel="Gates",
        ),
    ] = None,
    gate_width: Annotated[
        int,
        typer.Option(
            "--gate-width",
            min=1,
            help="Units of each gate's hidden layer.",
            rich_help_panel="Gates",
        ),
    ] = GATE_WIDTH,
    skip_unsplittable: Annotated[
        bool,
        typer.Option(
            "--skip-unsplittable",
            help="Leave residual blocks that cannot be gated as they are, and gate the others.",
            rich_help_panel="Gates",
        ),
    ] = False,
    strip: Annotated[
        bool,
        typer.Option(
            "--strip",
            help="Take the gates out of a model file: the weights of the network before gating, "
            "under its own names.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The model file to write; MODEL.safetensors by default.",
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
    """Put a gate before each residual block of a network and write a model file."""
    if strip:
        _refuse_with_strip(
            {
                "--weights": weights,
                "--use-ema": use_ema,
                "--pretrained": pretrained,
                "--num-classes": num_classes,
                "--class-names": class_names,
                "--ungated": ungated,
                "--targets": targets,
                "--gate-width": gate_width != GATE_WIDTH,
                "--skip-unsplittable": skip_unsplittable,
                **{f"--{name.replace('_', '-')}": True for name in override.given},
            }
        )
        _strip(Path(model), out, force=force, json=json)
        return
    if weights is not None and pretrained:
        raise UserError("--weights and --pretrained were both given: expected one of them")
    if use_ema and weights is None:
        raise UserError("--use-ema was given without --weights: it chooses within a weights file")
    if Path(model).is_file():
        raise UserError(
            f"MODEL {model} is a file: expected a network's name, with --weights {model} if the "
            "file holds its weights, or --strip to take the gates out of a model file"
        )
    name = Path(model.rpartition(":")[2]).name or "model"
    target = check_output(out or Path(f"{name}{_SUFFIX}"), force=force, suffix=_SUFFIX)
    is_local = model.startswith("local-dir:")
    if not is_local and (pretrained or model.startswith(("hf-hub:", "hf_hub:"))):
        what = "published weights" if pretrained else "description"
        note(f"fetching the {what} of {model}, over the network unless cached")
    with status("building the network"), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        from aigtool.conversion import convert as convert_network
        from aigtool.flops import count_flops
        from aigtool.models.files import save_model
        from aigtool.models.origin import create_model
        from aigtool.selection import parse_targets

        rates = None if targets is None else parse_targets(targets)
        made, loaded = create_model(
            model,
            weights=weights,
            use_ema=use_ema,
            pretrained=pretrained,
            num_classes=num_classes,
            class_names=class_names,
        )
        made = made.overridden(override)
        network, description = made.network, made.description
        convert_network(
            network,
            width=gate_width,
            ungated=[part.strip() for given in ungated or () for part in given.split(",")],
            targets=rates,
            skip_unsplittable=skip_unsplittable,
            input_size=description.input.size,
        )
        counts = count_flops(network, description.input.size)
        step = {"weights": loaded.origin} | ({"new_classifier": True} if loaded.fresh else {})
        save_model(target, network, description.after("convert", **step))
    for warning in warned:
        warn(str(warning.message))
    if loaded.origin == "random":
        warn("the weights are random: give your own with --weights, or --pretrained")
    for remark in loaded.remarks():
        note(remark)
    result = {
        "out": str(target),
        "model": model,
        "gates": len(counts.gated_blocks),
        "blocks": len(counts.blocks),
        "gate_width": gate_width,
        "num_classes": description.num_classes,
        "gflops_dense": counts.gflops_dense,
        "gate_gflops": counts.gate_gflops,
        "params": counts.params,
        "gate_params": counts.gate_params,
    }
    if json:
        print_json(result)
    else:
        overhead = counts.gate_gflops / counts.gflops_dense
        print_facts(
            model,
            [
                (
                    "gates",
                    f"{len(counts.gated_blocks)} on {len(counts.blocks)} residual blocks, "
                    f"width {gate_width}",
                ),
                ("dense", f"{counts.gflops_dense:.4g} GFLOPs (multiply-accumulates)"),
                ("gates add", f"{100 * overhead:.3f} % GFLOPs, {counts.gate_params:,} parameters"),
            ],
        )
    budget = "--target-rate 0.6" if rates is None else "--target per-layer"
    wrote([target], f"aigtool finetune {target} --data FOLDER {budget}")


def _refuse_with_strip(options: dict[str, Any]) -> None:
    if given := [name for name, value in options.items() if value]:
        raise UserError(
            f"{given[0]} was given with --strip, which only takes the gates out of a model file: "
            "expected one of the two"
        )


def _strip(model: Path, out: Path | None, *, force: bool, json: bool) -> None:
    stripped = out or model.with_name(f"{model.stem}-dense{_SUFFIX}")
    target = check_output(stripped, force=force, suffix=_SUFFIX)
    with status("taking the gates out"):
        from aigtool.models.files import load_model, save_model

        loaded = load_model(model)
        gates = len(loaded.description.gated_blocks)
        if not gates:
            raise UserError(f"model file {model} has no gates: there is nothing to strip")
        dense = loaded.stripped()
        save_model(target, dense.network, dense.description.after("strip"))
    if json:
        print_json({"out": str(target), "model": str(model), "gates": 0, "stripped": gates})
    else:
        print_facts(str(model), [("gates", f"0, {gates} taken out")])
    wrote([target])
