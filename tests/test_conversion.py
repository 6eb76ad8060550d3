import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import (
    block_shapes,
    convert,
    forced_decisions,
    gate_policy,
    named_gates,
    recorded_decisions,
    set_policy,
    strip,
)
from aigtool.discovery import find_blocks
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.zoo import create_network
from aigtool.training.hints import stage_ends
from tests.conftest import close
from tests.marks import but_slow

NETWORKS = {
    "resnet18": 8,
    "resnet50": 16,
    "seresnet50": 16,
    "resnetv2_50": 16,
    "torchvision:resnet50": 16,
    "cifar_resnet20": 9,
}
LARGE = ("resnet50", "seresnet50", "resnetv2_50", "torchvision:resnet50")


@pytest.fixture
def network(gated_network: nn.Module) -> nn.Module:
    return gated_network


@pytest.mark.parametrize("name", but_slow(NETWORKS, LARGE))
def test_a_converted_network_is_the_original_with_open_gates_and_skips_right(
    name: str, lively: Callable[..., nn.Module]
) -> None:
    original = lively(name)
    state = copy.deepcopy(original.state_dict())
    x = torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        expected = original(x)
    network = convert(original)
    gates = dict(named_gates(network))
    assert len(gates) == NETWORKS[name]

    gate_keys = {key for key in network.state_dict() if ".gate." in key}
    assert set(network.state_dict()) - gate_keys == set(state)
    missing, unexpected = network.load_state_dict(state, strict=False)
    # PyTorch fills a norm's counter in by itself where a state dict lacks it.
    weights = {key for key in gate_keys if not key.endswith("num_batches_tracked")}
    assert (set(missing), unexpected) == (weights, [])
    for key, value in state.items():
        assert torch.equal(network.state_dict()[key], value)

    with torch.no_grad():
        with gate_policy(network, "open"):
            opened = network(x)
        with gate_policy(network, "closed"):
            closed = network(x)
    assert close(opened, expected)
    assert (opened - closed).abs().max() >= 0.01 * opened.abs().max()

    for count in (1, 16):
        pattern = {gate: torch.rand(count) < 0.6 for gate in gates}
        masks = {gate: value.float().requires_grad_() for gate, value in pattern.items()}
        with torch.no_grad(), forced_decisions(network, pattern):
            skipped = network(x[:count])
        with forced_decisions(network, masks):
            masked = network(x[:count])
        assert close(skipped, masked.detach())

    # The gates' own decisions: skipping without a gradient, masked where the image wants one.
    for gate in gates.values():
        nn.init.normal_(gate.fc2.weight, std=2.0)
        nn.init.zeros_(gate.fc2.bias)
    for count in (1, 16):
        with torch.no_grad(), recorded_decisions(network) as decisions:
            skipped = network(x[:count])
            chosen = {gate: decision.scale for gate, decision in decisions.items()}
        with recorded_decisions(network) as decisions:
            masked = network(x[:count].clone().requires_grad_())
        assert close(skipped, masked.detach())
        assert {decision.run for decision in decisions.values()} == {"scaled"}
        for gate, decision in decisions.items():
            assert torch.equal(decision.scale.detach(), chosen[gate])
    assert 0 < torch.stack(list(chosen.values())).mean() < 1


def test_a_skipped_block_is_not_computed(network: nn.Module) -> None:
    computed: list[str] = []
    for name, _ in named_gates(network):
        network.get_submodule(f"{name}.conv1").register_forward_hook(
            lambda *_, name=name: computed.append(name)
        )
    names = [name for name, _ in named_gates(network)]
    pattern = {name: torch.tensor([number % 2 == 0]) for number, name in enumerate(names)}
    with torch.no_grad(), forced_decisions(network, pattern):
        network(torch.randn(1, 3, 32, 32))
    assert computed == names[::2]


def test_strip_is_the_inverse(small_network: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = small_network(x)
    keys = list(small_network.state_dict())
    kinds = [type(module) for module in small_network.modules()]
    network = strip(convert(small_network))
    assert list(network.state_dict()) == keys
    assert [type(module) for module in network.modules()] == kinds
    assert torch.equal(network(x), expected)


def test_a_deep_copy_is_independent(network: nn.Module) -> None:
    twin = copy.deepcopy(network)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin(x), network(x))
        twin.layer1[0].conv1.weight.zero_()
        assert network.layer1[0].conv1.weight.abs().sum() > 0
        assert not torch.equal(twin(x), network(x))


def test_timms_questions_are_still_answered(network: nn.Module) -> None:
    assert network.num_classes == 3
    assert network.pretrained_cfg["input_size"] == (3, 32, 32)
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    network.reset_classifier(7)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_patterns_and_targets_choose_what_is_gated() -> None:
    names = list(find_blocks(create_network("resnet18")).blocks)
    assert len(list(named_gates(convert(create_network("resnet18"), ungated="first")))) == 7
    network = convert(create_network("resnet18"), ungated=["first:2", "last:4"])
    assert [name for name, _ in named_gates(network)] == names[2:4]
    targets = [1, 0.8, 1, 1, 0.5, 1, 1, 1]
    network = convert(create_network("resnet18"), targets=targets)
    assert {name: gate.target for name, gate in named_gates(network)} == {
        names[1]: 0.8,
        names[4]: 0.5,
    }
    assert list(find_blocks(network).blocks) == names
    network = convert(create_network("resnet50"), targets="resnet50-eccv:0.3")
    assert [gate.target for _, gate in named_gates(network)] == [0.8, *[0.3] * 8, 0.7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [0.5]}, "targets given: 1; residual blocks: 9"),
        ({"targets": [0.0] + [1] * 8}, "target 0"),
        ({"targets": [1] * 9}, "no block is left"),
        ({"ungated": ["layer9.*"]}, r"ungated 'layer9\.\*' matches no block"),
        ({"ungated": ["*"]}, "no block is left"),
        ({"shortcuts": {"layer9.0": "a"}}, r"shortcut of 'layer9\.0'"),
        ({"width": 0}, "gate width 0"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(create_network("cifar_resnet20"), **options)  # type: ignore[arg-type]


def test_networks_that_cannot_be_converted_are_told(small_network: nn.Module) -> None:
    with pytest.raises(UserError, match="has gates already"):
        convert(convert(small_network))
    with pytest.raises(UserError, match="given 'resnet50': expected a network"):
        convert("resnet50")  # type: ignore[type-var]
    with pytest.raises(UserError, match="no residual block that can be gated: looked for"):
        convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    with pytest.raises(UserError, match="expected one of argmax"):
        set_policy(small_network, "always")  # type: ignore[arg-type]


def test_recorded_decisions_are_those_made(network: nn.Module) -> None:
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight)
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad(), recorded_decisions(network) as decisions:
        expected = network(x)
        made = {name: decision.scale.clone() for name, decision in decisions.items()}
    assert list(made) == [name for name, _ in named_gates(network)]
    with torch.no_grad(), forced_decisions(network, made), recorded_decisions(network) as again:
        assert close(network(x), expected)
    assert all(torch.equal(again[name].scale, made[name]) for name in made)
    with torch.no_grad():
        decisions.clear()
        network(x)
    assert not decisions


def test_expected_scales_every_residual(network: nn.Module) -> None:
    x = torch.randn(4, 3, 32, 32)
    gates = dict(named_gates(network))
    for gate in gates.values():
        gate.expected_rate.fill_(0.3)
    with torch.no_grad(), gate_policy(network, "expected"):
        expected = network(x)
    with forced_decisions(network, {n: torch.full((4,), 0.3).requires_grad_() for n in gates}):
        torch.testing.assert_close(network(x).detach(), expected)


class Tie(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def test_a_block_that_cannot_be_gated_is_skipped_only_where_allowed() -> None:
    network = create_network("cifar_resnet20")
    network.layer1[1] = Tie()
    with pytest.raises(UserError, match=r"layer1\.1 \(its two branches.*other 8 alone"):
        convert(network)
    assert not list(named_gates(network))
    with pytest.warns(UserWarning, match=r"layer1\.1 \(its two branches"):
        convert(network, skip_unsplittable=True)
    assert len(list(named_gates(network))) == 8

    network = create_network("cifar_resnet20")
    network.layer1[1] = Tie()
    convert(network, shortcuts={"layer1.1": "right"})
    assert len(list(named_gates(network))) == 9
    x = torch.randn(1, 16, 4, 4)
    network.layer1[1].gate.policy = "closed"
    assert torch.equal(network.layer1[1](x), network.layer1[1].right(x))


class Odd(nn.Module):
    """Has blocks that are called by keyword, given a list, give two values, or never run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.plain, self.named, self.idle = (Residual() for _ in range(3))
        self.of_list, self.two = OfList(), Two()

    def forward(self, x: Tensor) -> Tensor:
        x = self.named(x=self.plain(self.stem(x)))
        first, second = self.two(self.of_list([x, x]))
        joined: Tensor = torch.cat([first, second], 1)
        return joined


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


class OfList(Residual):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.conv(x[0]) + x[1]


class Two(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(x) + x).chunk(2, 1)


def test_what_looks_like_a_block_is_one_where_it_maps_features_to_features() -> None:
    network, size = Odd(), (3, 8, 8)
    assert [*block_shapes(network, size)] == ["plain"]
    assert [block.name for block in count_flops(network, size).blocks] == ["plain"]
    assert stage_ends(network, size) == ["plain"]
    assert block_shapes(nn.Conv2d(3, 4, 1), size) == {}
    assert stage_ends(nn.Conv2d(3, 4, 1), size) == []


def test_an_input_that_does_not_suit_is_told(small_network: nn.Module) -> None:
    told = "CifarResNet cannot be run on an input of 1x32x32 .*: give the input size it was made"
    for ask in (block_shapes, count_flops, stage_ends):
        with pytest.raises(UserError, match=told):
            ask(small_network, (1, 32, 32))


def test_a_reason_that_blocks_share_is_told_once() -> None:
    network = create_network("cifar_resnet56")
    for place in range(7):
        network.layer1[place] = Tie()
    with pytest.raises(UserError) as raised:
        convert(network)
    assert "cannot gate 7 of 27 residual blocks: layer1.0, layer1.1, " in str(raised.value)
    assert "layer1.4, and 2 more (its two branches" in str(raised.value)
    assert str(raised.value).count("its two branches") == 1


def test_conversion_holds_no_second_copy_of_the_weights(small_network: nn.Module) -> None:
    before = {name: tensor.data_ptr() for name, tensor in small_network.state_dict().items()}
    after = convert(small_network).state_dict()
    assert {name: after[name].data_ptr() for name in before} == before


class OwnBasic(nn.Module):
    """In the functional style, with a projection where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.proj = nn.Conv2d(channels, out_channels, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        y += x if self.proj is None else self.proj(x)
        return torch.relu_(y)


class OwnMobile(nn.Module):
    """All layers in one, without activation after the sum, scaled by a parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 1),
            nn.GroupNorm(2, 4 * channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels),
            nn.Hardswish(inplace=True),
            nn.Conv2d(4 * channels, channels, 1),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


class OwnNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.stages = nn.ModuleDict(
            {"fine": nn.ModuleList([OwnBasic(8, 8), OwnMobile(8)]), "coarse": OwnBasic(8, 16, 2)}
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.stages["fine"]:
            x = block(x)
        return self.head(self.stages["coarse"](x).mean((2, 3)))


def test_a_network_of_ones_own_converts() -> None:
    network = OwnNetwork().eval()
    x = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        expected = network(x)
        convert(network)
        names = [name for name, _ in named_gates(network)]
        assert names == ["stages.fine.0", "stages.fine.1", "stages.coarse"]
        with gate_policy(network, "open"):
            assert torch.equal(network(x), expected)
        pattern = {name: torch.rand(5) < 0.5 for name in names}
        with forced_decisions(network, pattern):
            skipped = network(x)
    masks = {name: chosen.float().requires_grad_() for name, chosen in pattern.items()}
    with forced_decisions(network, masks):
        assert close(skipped, network(x).detach())
