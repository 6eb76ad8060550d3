"""``aigtool flops``: where a network's multiply-accumulates are."""

from aigtool.cli.console import print_json, print_table, status
from aigtool.cli.grouping import takes_size
from aigtool.cli.options import Debug, Json, ModelFile, Quiet
from aigtool.models.override import InputOverride


@takes_size
def flops(
    model: ModelFile,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    override: InputOverride,
) -> None:
    """Count a network's GFLOPs: dense, per block and of the gates.

    GFLOPs are multiply-accumulates for one image, as fvcore counts them.
    """
    with status("counting"):
        from aigtool.flops import count_flops
        from aigtool.models.files import load_model

        loaded = load_model(model).overridden(override)
        counts = count_flops(loaded.network, loaded.description.input.size)
    if json:
        print_json(
            {
                "gflops_dense": counts.gflops_dense,
                "params": counts.params,
                "gate_gflops": counts.gate_gflops,
                "gate_params": counts.gate_params,
                "blocks": [
                    {
                        "name": block.name,
                        "gflops": block.gflops,
                        "gated": block.gated,
                        "skippable_gflops": block.skippable,
                        "gate_gflops": block.gate,
                    }
                    for block in counts.blocks
                ],
            }
        )
        return
    dense = counts.gflops_dense
    rows = [
        [
            block.name,
            f"{block.gflops:.5f}",
            f"{100 * block.gflops / dense:.1f}",
            f"{block.skippable:.5f}" if block.gated else "not gated",
            f"{block.gate:.7f}" if block.gated else "",
        ]
        for block in counts.blocks
    ]
    rest = dense - sum(block.gflops for block in counts.blocks)
    rows.append(["(in no residual block)", f"{rest:.5f}", f"{100 * rest / dense:.1f}", "", ""])
    print_table(
        f"{loaded.description.source}: {dense:.6g} GFLOPs dense, {counts.params:,} parameters; "
        f"gates {counts.gate_gflops:.3g} GFLOPs ({100 * counts.gate_gflops / dense:.4f} %), "
        f"{counts.gate_params:,} parameters",
        ["block", "GFLOPs", "% of dense", "skippable", "gate"],
        rows,
    )
