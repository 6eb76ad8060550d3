"""Multiply-accumulates, as fvcore counts them: dense, per block, of the gates, and executed.

fvcore counts one fused multiply-add as one flop; a ResNet-50 at 224x224 has about 4.1 G. It counts
only the path that the traced input takes, so blocks are counted with open and with closed gates,
and gates on their own. A gate's pooling is a mean, in which fvcore counts nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from aigtool.blocks import GatedBlock
from aigtool.conversion import block_shapes, gate_policy
from aigtool.gates import Gate, Policy
from aigtool.modes import in_mode


@dataclass(frozen=True)
class BlockFlops:
    """Counts of one residual block, in GFLOPs.

    Attributes:
        name: The block's name.
        gflops: The whole block: residual and shortcut.
        gated: Whether it has a gate.
        skippable: What a closed gate saves.
        gate: What the gate adds.
        gate_params: Parameters of the gate.
        downsamples: Whether its features leave it in a lower resolution than they came in.
    """

    name: str
    gflops: float
    gated: bool = False
    skippable: float = 0.0
    gate: float = 0.0
    gate_params: int = 0
    downsamples: bool = False


@dataclass(frozen=True)
class NetworkFlops:
    """Counts of a network for one image, in GFLOPs (multiply-accumulates).

    Attributes:
        gflops_dense: The network before gating, which is the network with open gates.
        params: Parameters of the network before gating.
        blocks: The residual blocks, gated or not, in the order of ``named_modules``.

    Example:
        >>> from aigtool.models.zoo import create_network
        >>> from aigtool.conversion import convert
        >>> flops = count_flops(convert(create_network("cifar_resnet20")), (3, 32, 32))
        >>> round(flops.gflops_dense, 4), flops.gate_params
        (0.0409, 5346)
        >>> flops.executed(np.array([[True] * 9, [False] * 9]), "argmax").round(4)
        array([0.0409, 0.0005])
    """

    gflops_dense: float
    params: int
    blocks: tuple[BlockFlops, ...]

    @property
    def gated_blocks(self) -> tuple[BlockFlops, ...]:
        """The blocks that have a gate."""
        return tuple(block for block in self.blocks if block.gated)

    @property
    def gate_gflops(self) -> float:
        """What all gates add."""
        return sum(block.gate for block in self.blocks)

    @property
    def gate_params(self) -> int:
        """Parameters of all gates."""
        return sum(block.gate_params for block in self.blocks)

    def executed(self, executed: npt.NDArray[np.bool_], policy: Policy) -> npt.NDArray[np.float64]:
        """Return the GFLOPs that each image took.

        Args:
            executed: ``(images, gates)``, whether the image executed the block.
            policy: The gate policy; ``argmax`` and ``sampled`` compute the gates, the others not.

        Returns:
            ``(images,)``.
        """
        skippable = np.array([block.skippable for block in self.gated_blocks])
        # In parts, since numbers take eight times the room of decisions.
        parts = np.array_split(executed, 1 + len(executed) // 65536)
        saved = np.concatenate([~part @ skippable for part in parts])
        overhead = self.gate_gflops if policy in ("argmax", "sampled") else 0.0
        result: npt.NDArray[np.float64] = self.gflops_dense + overhead - saved
        return result


class _GateLogits(nn.Module):
    """A gate as a function that fvcore can trace."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate.logit(x)


def count_flops(network: nn.Module, input_size: tuple[int, int, int]) -> NetworkFlops:
    """Count a network's multiply-accumulates for one image.

    Args:
        network: Gated or not.
        input_size: Channels, height, width.

    Returns:
        The counts.

    Raises:
        UserError: The network cannot be run on an input of that size.
    """
    weight = next(network.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    shapes = block_shapes(network, input_size)
    with in_mode(network, training=False):
        with gate_policy(network, "open"), _gate_inputs(network) as inputs:
            opened = _count(network, image)
        with gate_policy(network, "closed"):
            closed = _count(network, image)
        gates = _count_gates(inputs)
        blocks = tuple(
            _with_gate(
                BlockFlops(
                    name,
                    opened[name] / 1e9,
                    downsamples=shapes[name].given[-2:] != shapes[name].taken[-2:],
                ),
                opened[name] - closed[name],
                block,
                gates,
            )
            for name, block in network.named_modules()
            if name in shapes
        )
    params = sum(p.numel() for p in network.parameters())
    return NetworkFlops(
        gflops_dense=opened[""] / 1e9,
        params=params - sum(block.gate_params for block in blocks),
        blocks=blocks,
    )


def _with_gate(
    counts: BlockFlops, saved: int, block: nn.Module, gates: dict[Gate, int]
) -> BlockFlops:
    if not isinstance(block, GatedBlock):
        return counts
    gate = block.gate
    return replace(
        counts,
        gated=True,
        skippable=saved / 1e9,
        gate=gates[gate] / 1e9,
        gate_params=sum(p.numel() for p in gate.parameters()),
    )


def _count_gates(inputs: dict[Gate, Tensor]) -> dict[Gate, int]:
    """Count each gate; those of the same size once."""
    sizes = {gate: (gate.width, given.shape) for gate, given in inputs.items()}
    some = {size: gate for gate, size in sizes.items()}
    counts = {size: _count(_GateLogits(gate), inputs[gate])[""] for size, gate in some.items()}
    return {gate: counts[size] for gate, size in sizes.items()}


def _count(network: nn.Module, image: Tensor) -> dict[str, int]:
    analysis = FlopCountAnalysis(network, image)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    with torch.no_grad():
        counts: dict[str, int] = analysis.by_module()
    return counts


@contextmanager
def _gate_inputs(network: nn.Module) -> Iterator[dict[Gate, Tensor]]:
    """Collect a zero input of the right shape for each gate from the next forward pass."""
    inputs: dict[Gate, Tensor] = {}

    def keep(gate: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(gate, Gate)
        inputs[gate] = torch.zeros_like(given[0])

    hooks = [
        module.gate.register_forward_pre_hook(keep)
        for module in network.modules()
        if isinstance(module, GatedBlock)
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
