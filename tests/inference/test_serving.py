"""A served network computes what the network computes, whoever skips and whoever watches."""

import copy
import pickle
from collections.abc import Callable
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from aigtool.conversion import (
    convert,
    forced_decisions,
    gate_policy,
    named_gates,
    recorded_decisions,
)
from aigtool.errors import UserError
from aigtool.inference.serving import serve
from aigtool.inference.skipping import NEIGHBOURS, SkippingBlock, groups
from aigtool.models.zoo import create_network
from tests.proof import WAYS, difference, enliven

SIZE = (3, 16, 16)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A lively ResNet-20 whose gates differ from image to image."""
    torch.manual_seed(0)
    network = convert(enliven(create_network("cifar_resnet20"), 16))
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight, std=3.0)
        nn.init.zeros_(gate.fc2.bias)
    return network.eval()


@pytest.fixture(scope="module")
def served(network: nn.Module) -> nn.Module:
    return serve(network, SIZE)


def masked(network: nn.Module, x: Tensor, pattern: Tensor) -> Tensor:
    """Compute every block for every image and multiply."""
    names = [name for name, _ in named_gates(network)]
    masks = pattern.float().requires_grad_()
    with forced_decisions(network, dict(zip(names, masks.unbind(1), strict=True))):
        output: Tensor = network(x)
    return output.detach()


@settings(deadline=None)
@given(
    st.sampled_from([1, 2, 7, 64]).flatmap(lambda images: arrays(bool, (images, 9))),
    st.sampled_from(WAYS),
)
def test_it_equals_the_masked_network_under_every_pattern(
    network: nn.Module, served: nn.Module, executed: npt.NDArray[np.bool_], way: dict[str, int]
) -> None:
    pattern = torch.from_numpy(executed)
    x = torch.randn(len(pattern), *SIZE, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    names = [name for name, _ in named_gates(served)]
    with (
        mock.patch.multiple("aigtool.inference.skipping", **way),
        torch.inference_mode(),
        forced_decisions(served, dict(zip(names, pattern.unbind(1), strict=True))),
    ):
        output = served(x)
    assert difference(output, masked(network, x, pattern)) < 1e-5
    assert torch.equal(x, before)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 2, 4, 5]).flatmap(lambda images: arrays(bool, (images, 9))))
def test_it_equals_the_masked_network_where_nobody_watches(
    network: nn.Module, served: nn.Module, executed: npt.NDArray[np.bool_]
) -> None:
    """Told by thresholds: blocks then ask the gates for few images in another way."""
    pattern = torch.from_numpy(executed)
    x = torch.randn(len(pattern), *SIZE, generator=torch.Generator().manual_seed(0))
    own = copy.deepcopy(served)
    for (_, gate), told in zip(named_gates(own), pattern.unbind(1), strict=True):
        gate.threshold = torch.where(told, -torch.inf, torch.inf)
    with torch.inference_mode():
        assert difference(own(x), masked(network, x, pattern)) < 1e-5


def test_images_are_picked_by_an_index_on_their_device(served: nn.Module) -> None:
    """On a GPU another is refused."""
    found = next(block for block in served.modules() if isinstance(block, SkippingBlock))
    block = copy.deepcopy(found)
    block.gate = nn.Identity()
    block.to("meta")
    asked = []

    def noted(x: Tensor, images: Tensor, *_: Tensor) -> Tensor:
        asked.append(images.device == x.device)
        return x[images]

    with mock.patch.multiple(
        "aigtool.inference.skipping", take_images=noted, put_images=noted, WIDE=2**40
    ):
        output = block._skip(torch.empty(3, 16, 16, 16, device="meta"), [True, False, True])
    assert (output.device.type, asked) == ("meta", [True, True])


class Keeping(nn.Module):
    """Features from before a block are read after it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = BasicBlock(16, 16), BasicBlock(16, 16)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """The block gets the features and what is kept is read, or the other way round."""
        x = self.a(self.stem(x))
        kept = KEPT[self.way.removesuffix(", and used")](x)
        if self.way.endswith(", and used"):
            x, kept = kept, x
        output: Tensor = (self.b(x) + kept).mean((2, 3))
        return output


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "in a layout": lambda x: x.contiguous(memory_format=torch.channels_last),
    "moved to a layout": lambda x: x.to(memory_format=torch.channels_last),
    "as rows": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "reshaped": lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, 16).mT.view(x.shape),
    "by keywords": lambda x: torch.reshape(shape=x.shape, input=x) if x.type() else x,
    "cloned": torch.clone,
}


@pytest.mark.parametrize("way", [*KEPT, "in a layout, and used"])
def test_features_that_are_read_later_are_not_written_over(way: str) -> None:
    """Though what returns them channels-last copies them in another layout."""
    torch.manual_seed(0)
    network = convert(enliven(Keeping(way), 16), input_size=SIZE).eval()
    served, x = serve(network, SIZE), torch.randn(6, *SIZE)
    some = dict.fromkeys("ab", torch.arange(6) % 2 == 0)
    with torch.inference_mode(), forced_decisions(network, some), forced_decisions(served, some):
        assert difference(served(x), network(x)) < 1e-5


def test_no_images_are_served_too() -> None:
    """Attention over channels refuses them, and so blocks must not run."""
    network = timm.create_model("resnet18", block_args={"attn_layer": "eca"})
    served = serve(convert(network).eval(), (3, 32, 32))
    with torch.inference_mode():
        assert served(torch.empty(0, 3, 32, 32)).shape == (0, 1000)


def test_it_can_be_pickled(served: nn.Module) -> None:
    x = torch.randn(2, *SIZE)
    again = pickle.loads(pickle.dumps(served))
    with torch.inference_mode():
        assert torch.equal(again(x), served(x))


def test_a_served_network_is_not_served_again(served: nn.Module) -> None:
    with pytest.raises(UserError, match="served already"):
        serve(served, SIZE)


@pytest.mark.parametrize("images", [1, 2, 7, 64])
def test_its_gates_decide_alike(network: nn.Module, served: nn.Module, images: int) -> None:
    x = torch.randn(images, *SIZE)
    with (
        torch.inference_mode(),
        recorded_decisions(network) as expected,
        recorded_decisions(served) as decided,
    ):
        logits, ours = network(x), served(x)
    assert difference(ours, logits) < 1e-5
    assert list(decided) == list(expected)
    rates = torch.stack([decision.scale.mean() for decision in expected.values()])
    assert images == 1 or 0.1 < rates.mean() < 0.9
    for name, decision in decided.items():
        torch.testing.assert_close(decision.logit, expected[name].logit, rtol=1e-4, atol=1e-4)
        assert torch.equal(decision.scale, expected[name].scale)


@pytest.mark.parametrize("policy", ["open", "closed", "expected"])
def test_it_obeys_the_other_policies(network: nn.Module, served: nn.Module, policy: str) -> None:
    x = torch.randn(3, *SIZE)
    with torch.inference_mode(), gate_policy(network, policy), gate_policy(served, policy):
        assert difference(served(x), network(x)) < 1e-5


def test_an_attack_gets_the_same_gradient(network: nn.Module, served: nn.Module) -> None:
    gradients = []
    for one in (network, served):
        x = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        one(x).square().sum().backward()
        gradients.append(x.grad)
    assert difference(gradients[1], gradients[0]) < 1e-4


def test_the_network_is_left_as_it_was(network: nn.Module) -> None:
    before, x = copy.deepcopy(network.state_dict()), torch.randn(2, *SIZE)
    with torch.inference_mode():
        expected = network(x)
        drawn = torch.get_rng_state()
        served = serve(network, SIZE)
        served(x)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert torch.equal(network(x), expected)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad for p in network.parameters())


def test_all_norms_of_a_resnet_are_folded(served: nn.Module) -> None:
    assert not [m for m in served.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_a_dense_network_is_served_too() -> None:
    network = enliven(create_network("cifar_resnet20"), 16)
    x = torch.randn(2, *SIZE)
    with torch.inference_mode():
        assert difference(serve(network, SIZE)(x), network(x)) < 1e-5


class Watched(nn.Module):
    """Returns features between blocks, and reads some again later."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.relu()
        first = self.blocks[0](x)
        second = self.blocks[1](first)
        third = self.blocks[2](second)
        fourth = self.blocks[3](third)
        fifth = self.blocks[4](fourth)
        return second, fifth + fourth.mean(), x


def test_features_that_others_read_are_not_written_over() -> None:
    layer = enliven(create_network("cifar_resnet32"), 32).layer1
    network = convert(Watched(layer), input_size=(16, 8, 8)).eval()
    served = serve(network, (16, 8, 8))
    blocks = [block for block in served.modules() if isinstance(block, SkippingBlock)]
    assert [block.rectified for block in blocks] == [False, True, True, True, True]
    overwrites = [block.overwrites for block in blocks]
    assert overwrites == [False, True, False, True, False]
    x, gates = torch.randn(5, 16, 8, 8), dict(named_gates(network))
    for executed in (*torch.eye(5).bool(), *(torch.rand(8, 5) < 0.5)):
        pattern = {name: e.expand(5) for name, e in zip(gates, executed, strict=True)}
        with torch.inference_mode():
            with forced_decisions(network, pattern):
                expected = network(x)
            with forced_decisions(served, pattern):
                output = served(x)
        for ours, theirs in zip(output, expected, strict=True):
            assert difference(ours, theirs) < 1e-5


class Shifted(nn.Module):
    """Changes in place what a block returned: the next block's input is negative in part."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        x -= 1
        output: Tensor = self.blocks[1](x)
        return output


def test_an_image_that_skips_is_rectified_where_its_input_is_not() -> None:
    layer = enliven(create_network("cifar_resnet32"), 32).layer1[:2]
    network = convert(Shifted(layer), input_size=(16, 8, 8)).eval()
    served, x = serve(network, (16, 8, 8)), torch.randn(3, 16, 8, 8)
    with torch.inference_mode(), gate_policy(network, "closed"), gate_policy(served, "closed"):
        assert network(x).min() == 0
        assert torch.equal(served(x), network(x))


def test_an_activation_that_was_replaced_after_gating_is_what_runs() -> None:
    network = convert(enliven(create_network("resnet18"), 32), input_size=(3, 32, 32))
    for name, _ in named_gates(network):
        network.set_submodule(f"{name}.act2", nn.LeakyReLU(0.5))
    served, x = serve(network.eval(), (3, 32, 32)), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        for policy in ("open", "closed"):
            with gate_policy(network, policy), gate_policy(served, policy):
                assert difference(served(x), network(x)) < 1e-5


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.sampled_from([(2**20, 28 * 28), (2**20, 14 * 14), (2**16, 32 * 32)]),
)
def test_groups_are_the_executed_images(executed: list[bool], kind: tuple[int, int]) -> None:
    size, positions = kind
    images = torch.arange(len(executed))
    made = list(groups(executed, size, positions))
    found = [images[group].tolist() for group in made]
    assert [n for group in found for n in group] == [n for n, runs in enumerate(executed) if runs]
    in_place, in_chunks = kind == (2**20, 28 * 28), kind == (2**16, 32 * 32)
    assert all(isinstance(group, slice) for group in made) or not (in_place or all(executed))
    most = NEIGHBOURS if in_place else 32 if in_chunks else len(executed)
    assert all(len(group) <= most for group in found)
    assert in_place or len(found) == -(-sum(executed) // most)
