"""Packed convolutions against those that they were made of."""

import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from aigtool.inference import packing
from aigtool.inference.packing import PackedConvolution, pack_convolutions
from aigtool.inference.serving import serve

GEOMETRIES = (
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "groups": 16},
)


@pytest.fixture(params=GEOMETRIES, ids=str)
def convolution(request: pytest.FixtureRequest) -> nn.Conv2d:
    made = nn.Conv2d(16, 32, **request.param).eval()
    return made.to(memory_format=torch.channels_last)


@pytest.fixture(params=[torch.no_grad, torch.inference_mode])
def _without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


def images(count: int, size: int = 7) -> Tensor:
    return torch.randn(count, 16, size, size).contiguous(memory_format=torch.channels_last)


def is_near(actual: Tensor, expected: Tensor) -> bool:
    """Whether they differ by the rounding of other orders of products at most."""
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.usefixtures("_without_gradients")
def test_it_is_the_convolution_for_any_image(convolution: nn.Conv2d) -> None:
    packed = PackedConvolution(convolution)
    for x in (images(1), images(1).contiguous(), images(3)[1:2], images(1, 9), images(1)):
        output = packed(x)
        assert is_near(output, convolution(x))
        assert output.is_contiguous(memory_format=torch.channels_last)
    assert (packed._packed is not None) == packing._CAN_PACK


@torch.inference_mode()
def test_it_is_the_convolution_for_inputs_of_all_shapes_in_turns(convolution: nn.Conv2d) -> None:
    packed, shapes = PackedConvolution(convolution), ((1, 7), (3, 7), (2, 9), (1, 7), (3, 7))
    for count, size in shapes:
        x = images(count, size)
        assert is_near(packed(x), convolution(x))
    traced = torch.jit.trace(packed, (x,))
    assert is_near(traced(x), convolution(x))


@pytest.mark.skipif(not packing._CAN_PACK, reason="this PyTorch cannot pack")
@torch.inference_mode()
def test_inputs_that_ask_for_the_same_layout_share_a_weight(
    convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = PackedConvolution(convolution), images(3)
    expected = convolution(x)
    monkeypatch.setattr(packing, "_layout_for", lambda *_: b"the same")
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    packed(images(1))
    kept = packed._packed
    assert is_near(packed(x), expected)
    monkeypatch.setattr(packing, "_layout_for", None)  # What was asked is not asked again.
    assert is_near(packed(x), expected)
    assert packed._packed is kept


@torch.inference_mode()
def test_inputs_that_ask_for_another_layout_are_left_to_pytorch(
    convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, batch, numbers = PackedConvolution(convolution), images(3), itertools.count()
    monkeypatch.setattr(packing, "_layout_for", lambda *_: bytes([next(numbers)]))
    packed(images(1))
    assert torch.equal(packed(batch), convolution(batch))
    if packed._packed is not None:
        assert packed._packed.suits == {images(1).shape: True, batch.shape: False}


@torch.inference_mode()
def test_where_tensors_are_made_by_default_changes_nothing(
    convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = PackedConvolution(convolution), images(2)
    monkeypatch.setattr(packing, "_layout_for", packing._layout_for.__wrapped__)
    with torch.device("meta"):
        assert is_near(packed(x), convolution(x))
        assert is_near(packed(x[:1]), convolution(x[:1]))


@torch.inference_mode()
def test_inputs_of_many_positions_are_left_to_pytorch(convolution: nn.Conv2d) -> None:
    packed, x = PackedConvolution(convolution), images(2, 46)
    assert torch.equal(packed(x), convolution(x))
    assert packed._packed is None


@torch.inference_mode()
def test_what_cannot_be_packed_is_computed_as_before(
    convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = PackedConvolution(convolution), images(1)
    assert packed(x[:0]).shape == convolution(x[:0]).shape
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), convolution(x))
        assert packed(x).dtype == torch.bfloat16
    monkeypatch.setattr(packing, "_CAN_PACK", False)
    assert torch.equal(packed(x), convolution(x))
    assert packed._packed is None


@pytest.mark.usefixtures("_without_gradients")
def test_it_follows_its_weight(convolution: nn.Conv2d) -> None:
    packed, other, x = PackedConvolution(convolution), copy.deepcopy(convolution), images(1)
    before = packed(x)
    other.weight.neg_()
    packed.load_state_dict(other.state_dict())
    assert is_near(packed(x), other(x))
    assert not is_near(packed(x), before)
    for layer in (packed, other):
        layer._apply(lambda values: 3 * values)
    assert is_near(packed(x), other(x))
    assert is_near(packed.double()(x.double()), other.double()(x.double()))
    for layer in (packed.float(), other.float()):
        layer.weight = nn.Parameter(2 * layer.weight)
    assert is_near(packed(x), other(x))
    twin = pickle.loads(pickle.dumps(packed))
    twin.load_state_dict({key: 2 * value for key, value in packed.state_dict().items()})
    assert is_near(twin(x), 2 * packed(x))


@torch.no_grad()
def test_it_follows_a_weight_that_is_written_to(convolution: nn.Conv2d) -> None:
    packed, x = PackedConvolution(convolution), images(1)
    packed(x)
    convolution.weight.mul_(2)
    assert is_near(packed(x), convolution(x))


def test_gradients_pass_through_it(convolution: nn.Conv2d) -> None:
    packed, x = PackedConvolution(convolution), images(1).requires_grad_()
    packed(x).square().sum().backward()
    expected = torch.autograd.grad(convolution(x).square().sum(), [x, convolution.weight])
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(packed.weight.grad, expected[1])
    assert packed._packed is None


def test_a_compiler_sees_the_convolution(convolution: nn.Conv2d) -> None:
    packed, x = PackedConvolution(convolution), images(1)
    with torch.no_grad():
        graph = torch.export.export(packed, (x,)).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert names == {"aten.conv2d.default"}


def test_a_served_network_packs_what_an_image_alone_runs(small_network: nn.Module) -> None:
    served, x = serve(small_network, (3, 32, 32)), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert is_near(served(x), small_network(x))
        assert is_near(served(x), small_network(x))
    layers = [module for module in served.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 19
    for layer in layers:
        assert isinstance(layer, PackedConvolution)
        assert (layer._packed is not None) == packing._CAN_PACK


def test_only_plain_convolutions_are_packed() -> None:
    class Other(nn.Conv2d):
        pass

    plain, reflecting = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, padding_mode="reflect")
    same = nn.Conv2d(3, 3, 3, padding="same")
    network = nn.Sequential(plain, reflecting, same, Other(3, 3, 1))
    keys = list(network.state_dict())
    pack_convolutions(network)
    assert isinstance(network[0], PackedConvolution)
    assert network[0].weight is plain.weight
    assert [*network][1:3] == [reflecting, same]
    assert type(network[3]) is Other
    assert list(network.state_dict()) == keys
