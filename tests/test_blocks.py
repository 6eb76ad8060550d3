import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from aigtool.blocks import GatedBlock, split
from aigtool.gates import Gate
from aigtool.graphs import NotResidualError


class PreActivation(nn.Module):
    """Both branches start from the same norm; the tail is the addition itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 6, 1)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.norm(x).relu()
        return self.conv2(self.conv1(shared).relu()) + self.shortcut(shared)


class InPlace(nn.Module):
    """Adds and activates in place, with a scaled residual and an addition inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.conv1(x))
        out = self.conv2(out) + out
        out = out * self.gain
        out += x
        return self.act(out)


class WritesUnread(InPlace):
    """Two writes whose results are not read, but their targets are."""

    def forward(self, x: Tensor) -> Tensor:
        x.relu_()
        out = self.conv2(self.conv1(x))
        out.mul_(self.gain)
        self.act(out)
        out += x
        return out


class NamesTheAddends(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.add(input=x, other=self.conv2(self.conv1(x))))


class WritesByOperator(InPlace):
    """``fx`` alone takes ``out *= 2`` for ``out = out * 2``, which the shortcut does not see."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.relu()
        identity = out
        out *= 2
        return self.act(identity + self.conv2(self.conv1(out)))


class HoldsAConstant(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + torch.tensor(0.5) * self.conv2(self.conv1(x)))


class HoldsItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + nn.functional.conv2d(x, self.weight)


class ResidualChain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


BLOCKS = {"pre-activation": PreActivation, "in-place": InPlace, "named": NamesTheAddends}


def gated(kind: type[nn.Module]) -> tuple[nn.Module, GatedBlock]:
    block = kind().eval()
    return block, GatedBlock(block, split(block), Gate(4)).eval()


@pytest.mark.parametrize("kind", BLOCKS.values(), ids=BLOCKS)
def test_open_is_the_block_and_closed_its_shortcut(kind: type[nn.Module]) -> None:
    block, gated_block = gated(kind)
    x = torch.randn(3, 4, 5, 5)
    expected = block(x.clone())
    gated_block.gate.policy = "open"
    torch.testing.assert_close(gated_block(x.clone()), expected, rtol=0, atol=0)
    gated_block.gate.policy = "closed"
    shortcut = block.shortcut(block.norm(x).relu()) if kind is PreActivation else x.relu()
    torch.testing.assert_close(gated_block(x.clone()), shortcut, rtol=0, atol=0)


def test_a_write_in_place_is_not_lost() -> None:
    block, gated_block = gated(WritesUnread)
    x = torch.randn(3, 4, 5, 5)
    gated_block.gate.policy = "open"
    torch.testing.assert_close(gated_block(x.clone()), block(x.clone()), rtol=0, atol=0)
    gated_block.gate.policy = "closed"
    assert torch.equal(gated_block(x.clone()), x.relu())


def test_a_write_by_an_operator_is_seen_by_both_branches() -> None:
    block, gated_block = gated(WritesByOperator)
    x = torch.randn(3, 4, 5, 5)
    gated_block.gate.policy = "open"
    assert torch.equal(gated_block(x), block(x))
    gated_block.gate.policy = "closed"
    assert torch.equal(gated_block(x), 2 * x.relu())


def test_a_constant_comes_along_and_a_refused_trace_leaves_none() -> None:
    block, gated_block = gated(HoldsAConstant)
    assert sum(name.startswith("_tensor_constant") for name in vars(block)) == 1
    x = torch.randn(3, 4, 5, 5)
    gated_block.gate.policy = "open"
    assert torch.equal(gated_block(x), block(x))
    assert torch.equal(copy.deepcopy(gated_block)(x), block(x))

    block = HoldsAConstant()
    block.gate = nn.Identity()
    before = {*vars(block)}
    with pytest.raises(NotResidualError):
        split(block)
    assert {*vars(block)} == before


def test_weights_of_the_block_itself_tell_the_residual() -> None:
    block, gated_block = gated(HoldsItsWeight)
    x = torch.randn(3, 4, 5, 5)
    gated_block.gate.policy = "closed"
    assert torch.equal(gated_block(x), block.scale * x)


def test_a_sequence_with_a_shortcut_around_it_is_a_block() -> None:
    block = ResidualChain().eval()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(GatedBlock(block, split(block), Gate(4)).eval()(x), block(x))


@pytest.mark.parametrize("kind", BLOCKS.values(), ids=BLOCKS)
def test_the_input_is_left_as_it_was(kind: type[nn.Module]) -> None:
    _, gated_block = gated(kind)
    x = torch.randn(3, 4, 5, 5)
    for policy in ("open", "closed", "argmax"):
        gated_block.gate.policy = policy
        given = x.clone()
        with torch.no_grad():
            gated_block(given)
        assert torch.equal(given, x)


@pytest.mark.parametrize("open_images", [[], [1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", BLOCKS.values(), ids=BLOCKS)
def test_only_chosen_images_are_computed(kind: type[nn.Module], open_images: list[int]) -> None:
    block, gated_block = gated(kind)
    nn.init.zeros_(gated_block.gate.fc2.weight)
    x = torch.randn(3, 4, 5, 5)
    seen: list[int] = []
    gated_block.conv2.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    decide = gated_block.gate.register_forward_hook(
        lambda _gate, _x, made: made._replace(
            scale=torch.tensor([float(image in open_images) for image in range(3)])
        )
    )
    with torch.no_grad():
        out = gated_block(x.clone())
    decide.remove()
    assert seen == ([len(open_images)] if open_images else [])
    gated_block.gate.policy = "closed"
    closed = gated_block(x.clone())
    full = block(x.clone())
    for image in range(3):
        wanted = full if image in open_images else closed
        torch.testing.assert_close(out[image], wanted[image])


def test_in_training_all_images_are_computed_and_multiplied() -> None:
    _, gated_block = gated(InPlace)
    gated_block.train()
    seen: list[int] = []
    gated_block.conv2.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    gated_block(torch.randn(16, 4, 5, 5)).sum().backward()
    assert sum(seen) == 16
    assert all(parameter.grad is not None for parameter in gated_block.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("open_images", [[], [1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", BLOCKS.values(), ids=BLOCKS)
def test_gradients_are_those_of_the_mask_though_skipped_images_have_no_graph(
    kind: type[nn.Module],
    open_images: list[int],
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, gated_block = gated(kind)
    x = torch.randn(3, 4, 5, 5).contiguous(memory_format=memory_format)
    scale = torch.tensor([float(image in open_images) for image in range(3)])
    gated_block.gate.register_forward_hook(
        lambda _gate, _x, made: made._replace(scale=scale, run="scaled")
    )
    with_graph: list[int] = []
    gated_block.conv2.register_forward_hook(
        lambda _, given, out: with_graph.extend([len(given[0])] * out.requires_grad)
    )
    found = []
    for least in (1 / 16, 2.0):
        monkeypatch.setattr("aigtool.blocks._WORTH_PARTING", least)
        gated_block.zero_grad()
        inputs = x.clone().requires_grad_(), scale.requires_grad_()
        scale.grad = None
        out = gated_block(inputs[0].clone())
        (out * out).sum().backward()
        own = {n: w for n, w in gated_block.named_parameters() if not n.startswith("gate.")}
        weights = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in own.items()}
        found.append({"out": out.detach(), "x": inputs[0].grad, "scale": scale.grad, **weights})
    assert with_graph == [len(open_images), 3][len(open_images) == 0 :]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("images", "is_parted"), [(16, True), (17, False)])
def test_images_are_parted_from_a_sixteenth_of_skipped_ones_on(
    images: int, is_parted: bool
) -> None:
    _, gated_block = gated(InPlace)
    scale = torch.tensor([0.0] + [1.0] * (images - 1))
    gated_block.gate.register_forward_hook(
        lambda _gate, _x, made: made._replace(scale=scale, run="scaled")
    )
    seen: list[int] = []
    gated_block.conv2.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    gated_block(torch.randn(images, 4, 5, 5, requires_grad=True))
    assert seen == ([1, images - 1] if is_parted else [images])


def test_images_that_share_statistics_are_not_parted() -> None:
    _, gated_block = gated(PreActivation)
    seen: list[int] = []
    gated_block.conv2.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    nn.init.zeros_(gated_block.gate.fc2.weight)
    for is_training in (False, True):
        gated_block.train(is_training)
        gated_block.gate.eval()
        x = torch.randn(16, 4, 5, 5, requires_grad=True)
        gated_block.gate.policy = "sampled"
        gated_block.gate.fc2.bias.data.zero_()
        gated_block(x)
    assert len(seen) == 3
    assert seen[0] + seen[1] == seen[2] == 16


def test_names_hooks_and_attributes_come_along() -> None:
    block = InPlace().eval()
    block.stride = 2
    calls: list[str] = []
    block.register_forward_hook(lambda *_: calls.append("hook"))
    keys = set(block.state_dict())
    gated_block = GatedBlock(block, split(block), Gate(4)).eval()
    gated_block(torch.randn(1, 4, 5, 5))
    assert (gated_block.stride, calls) == (2, ["hook"])
    assert {key for key in gated_block.state_dict() if not key.startswith("gate.")} == keys
    back = gated_block.ungated()
    assert type(back) is InPlace
    assert set(back.state_dict()) == keys
    assert not hasattr(back, "gate")


class AsksSizes(nn.Module):
    """Both branches need sizes and pieces of the shared input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.norm(x)
        sizes = (shared.shape[0], shared.size(1), x.shape[2], x.shape[3])
        first, second = shared.chunk(2, dim=1)
        residual = self.conv(first).reshape(sizes)
        return residual + torch.cat([second, second], 1).view(sizes)


@pytest.mark.parametrize("open_images", [[1], [0, 2]])
def test_sizes_and_pieces_are_worked_out_for_the_chosen_images(open_images: list[int]) -> None:
    block = AsksSizes().eval()
    gated_block = GatedBlock(block, split(block), Gate(4)).eval()
    x = torch.randn(3, 4, 5, 5)
    chosen = torch.tensor([float(image in open_images) for image in range(3)])
    gated_block.gate.register_forward_hook(lambda _g, _x, made: made._replace(scale=chosen))
    with torch.no_grad():
        out = gated_block(x)
    torch.testing.assert_close(out[open_images], block(x)[open_images])


class SlicingShortcut(InPlace):
    """Its shortcut is a view of the input, and its tail writes in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x[:, :, ::2, ::2] + self.conv1(x)[:, :, ::2, ::2])


def test_a_tail_that_writes_in_place_leaves_a_view_of_the_input_alone() -> None:
    _, gated_block = gated(SlicingShortcut)
    gated_block.gate.policy = "closed"
    x = torch.randn(2, 4, 6, 6)
    given = x.clone()
    assert torch.equal(gated_block(given), x[:, :, ::2, ::2].relu())
    assert torch.equal(given, x)


def test_a_gated_block_can_be_pickled_and_copied() -> None:
    _, gated_block = gated(PreActivation)
    twin = pickle.loads(pickle.dumps(gated_block))
    x = torch.randn(3, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(twin(x), gated_block(x))
    assert type(twin.ungated()) is PreActivation
