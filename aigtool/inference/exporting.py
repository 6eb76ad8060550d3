"""A gated network as an ONNX model that skips without us."""

import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.inference.serving import serve
from aigtool.inference.skipping import SkippingBlock
from aigtool.models.description import InputSpec, PixelNetwork
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
    if model.description.policy != "argmax":
        raise UserError(
            f"gate policy {model.description.policy}: an exported network decides by argmax alone"
        )
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
    network = _Branching(serve(model.network, description.input.size), description.input, gates)
    selected = [f"{name}/output" for name in gates]
    outputs = ["logits", *(["gate_logits", "executed", *selected] if gates else [])]
    weight = next(network.parameters())
    inputs: dict[str, Tensor] = {"pixels": weight.new_zeros(1, *description.input.size)}
    if thresholds_as_inputs:
        inputs |= {name: weight.new_zeros(1) for name in gates}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # The exporter warns of its own workings.
        program = torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=[*inputs],
            output_names=outputs,
        )
    assert program is not None
    exported = program.model_proto
    put_branches(exported, selected)
    about = {**description.to_json(), "flops": asdict(flops)}
    facts = {
        METADATA: about,
        "class_names": description.class_names,
        "preprocessing": _preprocessing(description.input),
    }
    helper.set_model_props(exported, {key: json.dumps(value) for key, value in facts.items()})
    return exported


def _preprocessing(spec: InputSpec) -> dict[str, object]:
    kept = ("size", "interpolation", "crop_pct", "crop_mode")
    return {"pixels": "RGB in 0..1", **{key: getattr(spec, key) for key in kept}}


class _Both(NamedTuple):
    logit: Tensor
    executed: Tensor
    output: Tensor


class _BothWays(SkippingBlock):
    """A block that computes what it gives if it is executed and if not, and selects one."""

    def __init__(self, block: SkippingBlock) -> None:
        super().__init__(block, overwrites=block.overwrites, rectified=block.rectified)
        self.threshold: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logit = self.gate.logit(x)
        executed = logit > (self.gate.threshold if self.threshold is None else self.threshold)
        for_residual, for_shortcut = self.parts.head(self, x)
        shortcut: Tensor = self.parts.shortcut(self, *for_shortcut)
        # Pooling over one position changes nothing, but onnxruntime then keeps the input's layout
        # for convolutions, and adds within the last of them.
        joined = F.max_pool2d(shortcut, 1) + self.parts.residual(self, *for_residual)
        skipped = shortcut
        if self.parts.tail is not None:
            joined = self.parts.tail(self, joined)
            if not self.settles(shortcut, x):
                skipped = self.parts.tail(self, shortcut.clone())
        output = torch.where(executed, joined, skipped)  # Of one image: it is one decision.
        self.both = _Both(logit, executed, output)
        return output


class _Branching(nn.Module):
    """A served network of blocks that compute both ways, and what each of them selected."""

    def __init__(self, network: nn.Module, spec: InputSpec, gates: list[str]) -> None:
        super().__init__()
        self.blocks = {}
        for name in gates:
            block = network.get_submodule(name)
            assert isinstance(block, SkippingBlock)
            self.blocks[name] = _BothWays(block).eval()
            network.set_submodule(name, self.blocks[name])
        self.network = PixelNetwork(network, spec)

    def forward(self, pixels: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
        for block, threshold in zip(self.blocks.values(), thresholds, strict=False):
            block.threshold = threshold
        logits = self.network(pixels)
        if not self.blocks:
            return (logits,)
        both = [block.both for block in self.blocks.values()]
        rows = (torch.cat([b[number] for b in both]).unsqueeze(0) for number in (0, 1))
        return (logits, *rows, *(b.output for b in both))
