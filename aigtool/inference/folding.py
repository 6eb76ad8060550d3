"""Batch norms folded into the layers before them."""

from collections.abc import Mapping
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from aigtool.gates import Gate


def fold_norms(network: nn.Module, norms: Mapping[str, str]) -> None:
    """Fold batch norms into convolutions, in place; the network computes the same but for rounding.

    Args:
        network: In evaluation mode.
        norms: By name of a convolution, the batch norm that alone reads what it computes.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
        >>> fold_norms(layers, {"0": "1"})
        >>> layers[1]
        Identity()
    """
    for convolution, norm in norms.items():
        before, after = network.get_submodule(convolution), network.get_submodule(norm)
        folded = fuse_conv_bn_eval(cast(nn.Conv2d, before), cast(nn.BatchNorm2d, after))
        network.set_submodule(convolution, folded)
        # timm's norms may have an activation in them.
        network.set_submodule(norm, getattr(after, "act", nn.Identity()))


def fold_gate(gate: Gate) -> None:
    """Fold a gate's batch norm, in place; its logits stay the same but for rounding.

    Example:
        >>> import torch
        >>> gate, x = Gate(8).eval(), torch.randn(2, 8, 3, 3)
        >>> before = gate.logit(x)
        >>> fold_gate(gate)
        >>> torch.allclose(gate.logit(x), before)
        True
    """
    gate.fc1 = fuse_linear_bn_eval(gate.fc1, gate.norm)
    gate.norm = cast(nn.BatchNorm1d, nn.Identity())
