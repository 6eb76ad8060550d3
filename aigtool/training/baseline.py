"""The paper's control: stochastic depth, blocks that run at random whatever the image."""

import copy
import math
from itertools import chain
from typing import TypeVar

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from aigtool.conversion import named_gates, set_policy
from aigtool.gates import Decision

Network = TypeVar("Network", bound=nn.Module)


def dropping_blocks(network: Network, execution_rate: float) -> Network:
    """Return a network that shares a gated one's weights and drops blocks at random in training.

    Each block runs for an image with probability ``execution_rate``, by timm's ``drop_path``,
    which scales what ran up to keep the mean; in evaluation every block runs: stochastic depth
    (Huang et al., ECCV 2016), with which Veit and Belongie (ECCV 2018, section 4.1) compare.

    Args:
        network: Gated; left as it is. Its gates are not computed.
        execution_rate: Above 0 and at most 1.

    Example:
        >>> import torchvision
        >>> from aigtool.conversion import convert
        >>> network = convert(torchvision.models.resnet18())
        >>> twin = dropping_blocks(network, 0.6)
        >>> twin.conv1.weight is network.conv1.weight
        True
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    twin = copy.deepcopy(network, shared)
    set_policy(twin, "open")

    def drop(gate: nn.Module, _inputs: tuple[Tensor], decision: Decision) -> Decision:
        if not gate.training:
            return decision
        scale = drop_path(torch.ones_like(decision.scale), 1 - execution_rate, training=True)
        return Decision(scale, torch.full_like(decision.logit, math.inf), "scaled")

    for _, gate in named_gates(twin):
        gate.register_forward_hook(drop)
    return twin
