"""Compiled branches compute what plain ones do, and leave a network as it was."""

import copy

import pytest
import torch
from torch import nn

from aigtool.blocks import GatedBlock
from aigtool.conversion import named_gates
from aigtool.training.compiling import CompiledBranches
from tests.conftest import MadeOnce


@pytest.fixture
def network(gated_once: MadeOnce) -> nn.Module:
    network = gated_once.copied().train()
    for _, gate in named_gates(network):
        gate.noise.zero_()
    return network


def blocks(network: nn.Module) -> list[GatedBlock]:
    return [module for module in network.modules() if isinstance(module, GatedBlock)]


def test_gradients_are_those_of_plain_branches(network: nn.Module) -> None:
    """Through ``torch.compile``'s way of calling, with PyTorch's own operations behind it."""
    other, images = copy.deepcopy(network), torch.rand(3, 3, 16, 16)
    branches = CompiledBranches(network)
    with torch.compiler.set_stance("force_eager"), branches.in_place():
        assert all(
            block.parts is not plain
            for block, plain in zip(blocks(network), branches.plain, strict=True)
        )
        torch.compile(network)(images).square().sum().backward()
    other(images).square().sum().backward()
    for found, expected in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_network_is_as_it_was_after_an_error(network: nn.Module) -> None:
    parts = [block.parts for block in blocks(network)]
    branches = CompiledBranches(network)
    with pytest.raises(RuntimeError, match="stop"), branches.in_place():
        raise RuntimeError("stop")
    assert all(block.parts is plain for block, plain in zip(blocks(network), parts, strict=True))
    assert not any("forward" in vars(block) for block in blocks(network))
