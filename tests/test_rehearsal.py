from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from aigtool.blocks import split
from aigtool.graphs import UnsplittableBlockError
from aigtool.rehearsal import ResidualBlock, compare


def found(block: nn.Module, **parts: object) -> ResidualBlock:
    return ResidualBlock(replace(split(block), **parts), (8, 16, 16), reshapes=False)


def doubled(block: nn.Module, x: Tensor) -> Tensor:
    return 2 * split(block).residual(block, x)


def written(_block: nn.Module, x: Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
    copied = x.clone()
    x.zero_()
    return (copied,), (copied,)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_parts_that_make_up_another_block_are_told(gain: float) -> None:
    """A gain of zero, with which training often starts, hides nothing."""
    block = BasicBlock(8, 8)
    nn.init.constant_(block.bn2.weight, gain)
    compare(block, found(block))
    with pytest.raises(UnsplittableBlockError, match="computes something else"):
        compare(block, found(block, residual=doubled))
    with pytest.raises(UnsplittableBlockError, match="writes in place into its input"):
        compare(block, found(block, head=written))


def test_comparing_leaves_the_block_and_chance_as_they_were() -> None:
    block = BasicBlock(8, 8).train()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    random = torch.get_rng_state()
    compare(block, found(block))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
    assert block.training
    assert "forward" not in vars(block)


def test_a_block_without_numbers_is_not_compared() -> None:
    block = BasicBlock(8, 8)
    wrong = found(block, residual=doubled)
    with pytest.raises(UnsplittableBlockError):
        compare(block, wrong)
    compare(block.to("meta"), wrong)


def test_a_block_that_cannot_be_run_is_told() -> None:
    block = BasicBlock(8, 8)
    with pytest.raises(UnsplittableBlockError, match="cannot be run on random features"):
        compare(block, replace(found(block), input_shape=(5, 16, 16)))
