"""What the splitter refuses, and with which reason."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aigtool.blocks import split
from aigtool.graphs import NotResidualError, UnsplittableBlockError
from tests.test_blocks import InPlace


class Chain(nn.Sequential):
    """A sequence of modules whose output is that of the last: no block."""


class Tie(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return x + self.conv(x)


class DropsByChance(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.conv, self.draw = nn.Conv2d(4, 4, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draw() < 0.5 else x + self.conv(x)


class Weighs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv(x), alpha=0.5)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.conv(x)


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.bias


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Branching(), "cannot trace"),
        (torch.jit.script(Weighs()), "cannot trace"),
        (DropsByChance(lambda: torch.rand(1).item()), "draws random numbers"),
        (DropsByChance(random.random), "draws random numbers"),
        (Weighs(), "does not end in an addition"),
        (TwoInputs(), "more or fewer than one input"),
        (Bias(), "does not reach the input"),
        (nn.Sequential(nn.Conv2d(4, 4, 1)), "does not end in an addition"),
        (Chain(nn.Conv2d(4, 4, 1)), "does not end in an addition"),
        (nn.Conv2d(4, 4, 1), "does not end in an addition"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_residual_block_is_refused_with_the_reason(
    module: nn.Module, reason: str
) -> None:
    with pytest.raises(NotResidualError, match=reason):
        split(module)


class OwnGate(InPlace):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Identity()


class ReadsTraining(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv1(x), training=self.training) + x


class ActsForEffect(InPlace):
    """What it writes goes unread but through another view of the same memory."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        out[:, 0].mul_(2)
        return out + x


class ReadsBeforeTheWrite(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        before = self.conv1(x)
        x.relu_()
        return self.conv2(before + x) + x


class AddsToItsInput(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        x += self.conv1(x)
        return x


class MixesByAWeight(InPlace):
    """Its two weights add up to 1 only where the layer drops the same in both."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.weight = nn.Dropout(), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        share = self.drop(self.weight)
        return share * self.conv1(x) + (1 - share) * x


class AsksTheOther(InPlace):
    """Its shortcut needs the residual's size, and so the residual."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        return out + nn.functional.interpolate(self.act(x), size=out.shape[-1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Tie, "1 parametrised layers each"),
        (OwnGate, "attribute called gate"),
        (ReadsTraining, r"reads self\.training"),
        (ActsForEffect, "for its effect alone"),
        (ReadsBeforeTheWrite, "then written to in place"),
        (AddsToItsInput, "then written to in place"),
        (MixesByAWeight, "serves both branches"),
        (AsksTheOther, "needs a value inside the other"),
    ],
)
def test_a_block_that_cannot_be_gated_is_refused_with_the_reason(
    kind: type[nn.Module], reason: str
) -> None:
    block = kind().eval()
    with pytest.raises(UnsplittableBlockError, match=reason):
        split(block)
    assert not any(module.training for module in block.modules())


@pytest.mark.parametrize("named", ["left", "right"])
def test_where_branches_tie_a_layer_names_the_shortcut(named: str) -> None:
    block = Tie()
    parts = split(block, named)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(parts.shortcut(block, x), getattr(block, named)(x))
    with pytest.raises(UnsplittableBlockError, match="'middle' is on 0 branches"):
        split(block, "middle")
