"""A gated network as an ONNX model that skips without us."""

import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.inference.branches import BranchingBlock, BranchingNetwork
from aigtool.models.description import Description
from aigtool.models.files import Model

if TYPE_CHECKING:
    from onnx import ModelProto

METADATA = "aigtool"
"""Key of the model's metadata under which its description lies, as JSON."""


def export_onnx(
    model: Model, flops: NetworkFlops, *, thresholds_as_inputs: bool = False
) -> "ModelProto":
    """Make an ONNX model of a network: one ``If`` a gated block, each with its weights inside.

    It takes ``pixels (1, C, H, W)`` in 0..1 and gives ``logits (1, classes)``, and, if it has
    gates, ``gate_logits`` and ``executed``, both ``(1, gates)``, in the order of ``flops``. The
    batch is of one image: what an image skips nobody computes, and on a CPU a loop over images is
    as fast as a batch.

    Args:
        model: Its gates decide by argmax. It is left as it is.
        flops: What ``count_flops`` counted for it; the metadata keeps it.
        thresholds_as_inputs: Whether each gate's threshold is an input of its own, ``(1,)``, called
            as the block, so that a benchmark can say what the gates decide.

    Returns:
        The model; its metadata hold class names, preprocessing and the description.

    Raises:
        UserError: The packages of the extra ``onnx`` are not installed, or the network's gates
            do not decide by argmax.
    """
    check_policy(model)
    try:
        import onnxscript  # noqa: F401, the exporter needs it
        from onnx import helper

        from aigtool.inference.branching import put_branches
    except ImportError as error:
        raise UserError(
            f"an export to ONNX needs {error.name}, which is not installed; "
            "pip install 'aigtool[onnx]'"
        ) from error
    description = model.description
    gates = [block.name for block in flops.gated_blocks]
    network = BranchingNetwork(model, gates, _Both)
    selected = [f"{name}/output" for name in gates]
    outputs = ["logits", *(["gate_logits", "executed", *selected] if gates else [])]
    weight = next(network.parameters())
    inputs: dict[str, Tensor] = {"pixels": weight.new_zeros(1, *description.input.size)}
    if thresholds_as_inputs:
        inputs |= {name: weight.new_zeros(1) for name in gates}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # The exporter warns of its own workings.
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=[*inputs],
            output_names=outputs,
        )
    assert program is not None
    exported = program.model_proto
    put_branches(exported, selected)
    helper.set_model_props(exported, facts(description, flops))
    return exported


def check_policy(model: Model) -> None:
    """Refuse what an exported network cannot do.

    Raises:
        UserError: The gates do not decide by argmax.
    """
    if (policy := model.description.policy) != "argmax":
        raise UserError(
            f"gate policy {policy}: an exported network decides by argmax alone; set the policy of "
            "its description to that, and save it anew"
        )


def facts(description: Description, flops: NetworkFlops) -> dict[str, str]:
    """Return what an exported file says of a network, as JSON by key.

    ``class_names`` and ``preprocessing`` are for whoever runs it, ``aigtool`` is for us.
    """
    kept = ("size", "interpolation", "crop_pct", "crop_mode")
    values = {
        METADATA: {**description.to_json(), "flops": asdict(flops)},
        "class_names": description.class_names,
        "preprocessing": {
            "pixels": "RGB in 0..1",
            **{key: getattr(description.input, key) for key in kept},
        },
    }
    return {key: json.dumps(value) for key, value in values.items()}


class _Both(BranchingBlock):
    """A block that computes both ways and selects one: ``put_branches`` makes an ``If`` of it."""

    spares_tail = False  # One thread copies what is left as it is; all of them rectify it.

    def select(self, executed: Tensor, x: Tensor) -> Tensor:
        return torch.where(executed, self.run(x), self.skip(x))

    def addend(self, x: Tensor) -> Tensor:
        # Pooling over one position changes nothing, but onnxruntime then keeps the input in the
        # layout of convolutions, and adds within the last of them.
        return F.max_pool2d(x, 1)
