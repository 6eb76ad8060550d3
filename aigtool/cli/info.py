"""``aigtool info``: what a model file says."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aigtool.cli.console import print_facts, print_json, print_table, status
from aigtool.cli.options import Debug, Json, ModelFile, Quiet

if TYPE_CHECKING:
    from aigtool.flops import BlockFlops
    from aigtool.gates import Gate


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
    rows = [_row(block, gates.get(block.name)) for block in counts.blocks]
    gated = [row for row in rows if row["gated"]]
    if json:
        print_json({**asdict(description), "file": str(model), "blocks": rows, "gates": gated})
        return
    names = description.class_names
    spec = description.input
    size = "x".join(str(side) for side in spec.size)
    facts = [
        ("network", description.source or "of the user's own class"),
        *((name, _short(value)) for name, value in description.options.items()),
        ("classes", f"{description.num_classes}" + (f": {', '.join(names)}" if names else "")),
        ("input", f"{size}, {spec.interpolation}, crop {spec.crop_pct:g} {spec.crop_mode}"),
        ("mean, std", f"{spec.mean}, {spec.std}"),
        ("dense", f"{counts.gflops_dense:.4g} GFLOPs, {counts.params:,} parameters"),
        ("gates", f"{len(gated)}, width {description.gate_width}, policy {description.policy}"),
        *(
            (step["step"], ", ".join(_detail(k, v) for k, v in step.items() if k != "step"))
            for step in description.history
        ),
    ]
    print_facts(str(model), facts)
    columns = ["stage", "block", "gated", "target", "GFLOPs", "gate\nparameters"]
    calibrated = any(row["threshold"] != 0 or row["expected_rate"] != 1 for row in gated)
    columns += ["threshold", "rate when\nsampled"] if calibrated else []
    print_table("", columns, [cells[: len(columns)] for cells in _cells(rows)], text_columns=2)


def _row(block: "BlockFlops", gate: "Gate | None") -> dict[str, Any]:
    stage, _, position = block.name.rpartition(".")
    row = {"name": block.name, "stage": stage, "block": position, "gated": gate is not None}
    row |= {"gflops": block.gflops, "gate_params": block.gate_params}
    if gate is not None:
        row |= {"target": gate.target, "threshold": gate.threshold.item()}
        row |= {"expected_rate": gate.expected_rate.item()}
    return row


def _cells(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A line a block, the stage named where it begins."""
    stage = None
    for row in rows:
        target = row.get("target")
        yield [
            "" if row["stage"] == stage else row["stage"],
            row["block"],
            "yes" if row["gated"] else "no",
            "-" if target is None else f"{target:g}",
            f"{row['gflops']:.5f}",
            *(
                [
                    f"{row['gate_params']:,}",
                    f"{row['threshold']:.3f}",
                    f"{row['expected_rate']:.3f}",
                ]
                if row["gated"]
                else ["", "", ""]
            ),
        ]
        stage = row["stage"]


def _detail(name: str, value: object) -> str:
    words = name.replace("_", " ")
    return words if value is True else f"{words} {_short(value)}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
