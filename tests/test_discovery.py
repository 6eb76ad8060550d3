import copy
import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import convert
from aigtool.discovery import find_blocks
from aigtool.errors import UserError
from aigtool.models.zoo import create_network


class Block(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Tie(nn.Module):
    """A tie around blocks that could be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(Block()), nn.Sequential(Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class LayerWritesIntoTheShortcut(Block):
    """The write hides in a layer, behind a view."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:]) + x


class LayerWritesIntoTheResidual(Block):
    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class LayerWritesInTraining(Block):
    """The write in place happens in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(inplace=True), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x)) + x


class Normed(Block):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Mixes(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.std() * self.conv(x)


class ScaledByChance(Block):
    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv(x)
        return x + residual * torch.rand_like(residual)


class OfOneSize(Block):
    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x + self.where)


class Broadcasts(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).mean((2, 3), keepdim=True)


class FoldsImages(Block):
    def forward(self, x: Tensor) -> Tensor:
        folded = x.reshape(1, -1, 4, 4)
        return (folded + self.conv(folded.view(-1, 4, 4, 4)).view(1, -1, 4, 4)).view(-1, 4, 4, 4)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(Tokens())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.permute(0, 2, 3, 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.first(x)))


class Idle(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


REFUSED = {
    "tie": (nn.Sequential(Tie(), Block()), "0", "1 parametrised layers each"),
    "write in a layer": (
        nn.Sequential(LayerWritesIntoTheShortcut(), Block()),
        "0",
        "residual writes in place",
    ),
    "write in a layer of the shortcut": (
        nn.Sequential(LayerWritesIntoTheResidual(), Block()),
        "0",
        "shortcut writes in place",
    ),
    "write in training": (
        nn.Sequential(LayerWritesInTraining(), Block()),
        "0",
        "residual writes in place",
    ),
    "mixed images": (nn.Sequential(Mixes(), Block()), "0", "depends on the images beside it"),
    "norm of the batch": (
        nn.Sequential(Normed(nn.BatchNorm2d(4, track_running_stats=False)), Block()),
        "0",
        "depends on the images beside it",
    ),
    "chance": (nn.Sequential(ScaledByChance(), Block()), "0", "or on chance"),
    "broadcast": (nn.Sequential(Broadcasts(), Block()), "0", "branches have the shapes"),
    "folded images": (nn.Sequential(FoldsImages(), Block()), "0", "an entry an image"),
    "tokens": (nn.Sequential(Block(), nn.Flatten(2), Tokens()), "2", "no batch of feature maps"),
    "run twice": (Twice(), "again", "more than once"),
    "never run": (Idle(), "again", "does not run"),
}


@pytest.mark.parametrize(("network", "name", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_block_that_cannot_be_gated_is_named_with_the_reason(
    network: nn.Module, name: str, reason: str
) -> None:
    size = (4, 4, 4) if name != "2" else (4, 2, 2)
    found = find_blocks(network, input_size=size)
    assert list(found.refused) == [name]
    assert re.search(reason, found.refused[name])
    assert len(found.blocks) == 1


def test_finding_leaves_a_network_as_it_was(small_network: nn.Module) -> None:
    small_network.layer1.train()
    before = copy.deepcopy(small_network.state_dict())
    modes = [module.training for module in small_network.modules()]
    find_blocks(small_network)
    assert [module.training for module in small_network.modules()] == modes
    after = small_network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any("forward" in vars(module) for module in small_network.modules())
    assert {parameter.device.type for parameter in small_network.parameters()} == {"cpu"}


def test_blocks_come_in_the_order_of_execution_with_what_they_get() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    assert list(find_blocks(Backwards()).blocks) == ["first", "last"]
    blocks = find_blocks(create_network("skresnet18")).blocks
    # The first layer of each block splits its input: its weights say half of this.
    assert [block.channels for block in blocks.values()] == [64, 64, 64, 128, 128, 256, 256, 512]
    assert [name for name, block in blocks.items() if block.reshapes] == [
        "layer2.0",
        "layer3.0",
        "layer4.0",
    ]


class Branching(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return super().forward(x)


def test_feature_maps_with_the_channels_last_are_refused() -> None:
    found = find_blocks(ChannelsLast(), input_size=(4, 4, 4))
    assert found.blocks == {}
    assert found.refused == {"block.0": "its feature maps are not (N, C, H, W)"}


def test_they_are_refused_behind_a_gate_too() -> None:
    """A gate has nothing to decide by where there are no numbers."""
    network = nn.Sequential(OrderedDict(gated=Block(), last=ChannelsLast()))
    gated = convert(network, input_size=(4, 4, 4), skip_unsplittable=True).eval()
    found = find_blocks(gated, input_size=(4, 4, 4))
    assert [*found.blocks] == ["gated"]
    assert [*found.refused] == ["last.block.0"]


def test_what_cannot_be_traced_is_named_where_it_may_be_a_block() -> None:
    found = find_blocks(nn.Sequential(Branching(), Block()))
    assert list(found.blocks) == ["1"]
    assert "torch.fx cannot trace it" in found.untraced["0"]


def test_an_input_that_does_not_suit_is_told() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 36), nn.Unflatten(1, (4, 3, 3)), Block())
    with pytest.raises(UserError, match="cannot be run on an input of 4x224x224"):
        find_blocks(network)
    assert list(find_blocks(network, input_size=(3, 4, 4)).blocks) == ["3"]
    with pytest.raises(UserError, match=r"shortcut of '9'.*expected one of 3"):
        find_blocks(network, shortcuts={"9": "conv"})


def test_a_block_for_one_size_or_a_norm_that_cannot_train_here_is_gated() -> None:
    network = nn.Sequential(OfOneSize(), Normed(nn.SyncBatchNorm(4)))
    blocks, refused, _ = find_blocks(network, input_size=(4, 8, 8))
    assert (list(blocks), refused) == (["0", "1"], {})
