"""``aigtool convert``: gates before the residual blocks of a network."""

from pathlib import Path
from typing import Annotated

import typer

from aigtool.cli.console import print_facts, print_json, status, warn, wrote
from aigtool.cli.options import Debug, Force, Json, Quiet


def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name: resnet50.a1_in1k (timm), torchvision:resnet50, cifar_resnet56, "
            "hf-hub:..., local-dir:...",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Your own weights: .safetensors, or what torch.save wrote.",
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Fetch the published weights.")
    ] = False,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=1, help="Outputs of the classifier.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names",
            metavar="FILE",
            help="Names of the classes in the order of the outputs, one a line; by default those "
            "that the network was published with.",
        ),
    ] = None,
    gate_width: Annotated[
        int, typer.Option("--gate-width", min=1, help="Units of each gate's hidden layer.")
    ] = 16,
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
) -> None:
    """Put a gate before each residual block of a network and write a model file."""
    from aigtool.errors import UserError
    from aigtool.output import check_output

    if weights is not None and pretrained:
        raise UserError("--weights and --pretrained were both given: expected one of them")
    name = model.rpartition("/")[2].rpartition(":")[2]
    untrained = weights is None and not pretrained
    target = check_output(out or Path(f"{name}.safetensors"), force=force)
    with status("building the network"):
        from aigtool.conversion import convert as convert_network
        from aigtool.flops import count_flops
        from aigtool.models.description import Description, InputSpec
        from aigtool.models.files import save_model
        from aigtool.models.zoo import (
            count_classes,
            create_network,
            load_weights,
            published_class_names,
            read_class_names,
        )

        network = create_network(model, pretrained=pretrained, num_classes=num_classes)
        if weights is not None:
            load_weights(network, weights)
        convert_network(network, width=gate_width)
        names = None if untrained else published_class_names(network)
        if class_names is not None:
            names = read_class_names(class_names, count_classes(network))
        description = Description(
            source=model,
            num_classes=count_classes(network),
            class_names=names,
            input=InputSpec.of(network),
        ).after(
            "convert",
            weights="random" if untrained else weights.name if weights else "published",
        )
        counts = count_flops(network, description.input.size)
        save_model(target, network, description)
    if untrained:
        warn("the weights are random: give your own with --weights, or --pretrained")
    result = {
        "out": str(target),
        "model": model,
        "gates": len(counts.gated_blocks),
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
                ("gates", f"{len(counts.gated_blocks)}, width {gate_width}"),
                ("dense", f"{counts.gflops_dense:.4g} GFLOPs (multiply-accumulates)"),
                ("gates add", f"{100 * overhead:.3f} % GFLOPs, {counts.gate_params:,} parameters"),
            ],
        )
    wrote([target], f"aigtool finetune {target} --data FOLDER --target-rate 0.6")
