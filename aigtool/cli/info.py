"""``aigtool info``: what a model file says."""

from dataclasses import asdict
from typing import Any

from aigtool.cli.console import print_facts, print_json, print_table, status
from aigtool.cli.options import Debug, Json, ModelFile, Quiet


def info(
    model: ModelFile,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what a model file holds: its network, input, gates and history."""
    with status("reading"):
        from aigtool.conversion import named_gates
        from aigtool.flops import count_flops
        from aigtool.models.files import load_model

        loaded = load_model(model)
        description = loaded.description
        counts = count_flops(loaded.network, description.input.size)
        gates = dict(named_gates(loaded.network))
    rows: list[dict[str, Any]] = [
        {
            "name": block.name,
            "gflops": block.gflops,
            "gate_params": block.gate_params,
            "target": gates[block.name].target,
            "threshold": gates[block.name].threshold.item(),
            "expected_rate": gates[block.name].expected_rate.item(),
        }
        for block in counts.gated_blocks
    ]
    if json:
        print_json({**asdict(description), "file": str(model), "gates": rows})
        return
    names = description.class_names
    spec = description.input
    size = "x".join(str(side) for side in spec.size)
    facts = [
        ("network", description.source or "of the user's own class"),
        ("classes", f"{description.num_classes}" + (f": {', '.join(names)}" if names else "")),
        ("input", f"{size}, {spec.interpolation}, crop {spec.crop_pct:g} {spec.crop_mode}"),
        ("mean, std", f"{spec.mean}, {spec.std}"),
        ("dense", f"{counts.gflops_dense:.4g} GFLOPs, {counts.params:,} parameters"),
        ("gates", f"{len(rows)}, width {description.gate_width}, policy {description.policy}"),
        *(
            (step["step"], ", ".join(f"{k} {_short(v)}" for k, v in step.items() if k != "step"))
            for step in description.history
        ),
    ]
    print_facts(str(model), facts)
    if rows:
        print_table(
            "",
            ["gated block", "GFLOPs", "gate\nparameters", "target", "threshold", "expected\nrate"],
            [
                [
                    row["name"],
                    f"{row['gflops']:.5f}",
                    f"{row['gate_params']:,}",
                    "-" if row["target"] is None else f"{row['target']:g}",
                    f"{row['threshold']:.3f}",
                    f"{row['expected_rate']:.3f}",
                ]
                for row in rows
            ],
        )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
