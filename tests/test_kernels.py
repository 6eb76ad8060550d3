"""Kernels of a GPU compute what PyTorch's operations do, both ways.

Where there is no GPU, Triton's interpreter runs them (``conftest.py`` says so).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.blocks import GatedBlock
from aigtool.conversion import convert, named_gates, recorded_decisions, set_policy
from aigtool.gates import Gate, pooled, straight_through
from aigtool.gpu import _compiles, aside, rejoin, suits_kernels, unobserved
from aigtool.models.zoo import create_network
from aigtool.picking import add_scaled, channel_means

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytest.importorskip("triton")
from aigtool.kernels import AddScaled, Decide, Decider, Pool, fits  # noqa: E402

SHAPES = [(3, 8, 23, 29), (2, 16, 32, 32), (2, 70, 9, 7), (2, 64, 17, 30), (1, 5, 1, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@contextmanager
def kernels(suit: bool) -> Iterator[None]:
    """Let what asks whether features suit kernels be told so, or not."""
    with ExitStack() as stack:
        for module in ("blocks", "gates", "picking"):
            stack.enter_context(mock.patch(f"aigtool.{module}.suits_kernels", lambda _: suit))
        # On a CPU images that are skipped would be parted from the others.
        stack.enter_context(mock.patch.object(GatedBlock, "_can_part", lambda *_: False))
        yield


@pytest.fixture(autouse=True)
def _wherever_features_lie() -> Iterator[None]:
    with kernels(True):
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def gradients(
    compute: Callable[..., tuple[Tensor, Tensor]],
    inputs: list[Tensor],
    of_outputs: list[Tensor],
    create_graph: bool = False,
) -> list[Tensor]:
    """Return what is computed, then its gradients."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    outputs = compute(*leaves)
    found = torch.autograd.grad(outputs, leaves, of_outputs, create_graph=create_graph)
    return [value.detach() for value in (*outputs, *found)]


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_operations(
    shape: tuple[int, ...], layout: torch.memory_format, rectified: bool
) -> None:
    torch.manual_seed(0)
    inputs = [random(*shape).contiguous(memory_format=layout) for _ in range(2)]
    inputs.append(torch.rand(shape[0], device=DEVICE))
    wanted = [random(*shape), random(*shape[:2])]

    def fused(x: Tensor, added: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        joined, means = AddScaled.apply(x, added, scale, rectified)
        return joined, means.sum(1)

    def plain(x: Tensor, added: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        joined = x + scale[:, None, None, None] * added
        joined = joined.relu() if rectified else joined
        return joined, joined.mean((2, 3))

    expected = gradients(plain, inputs, wanted)
    for create_graph in (False, True):
        found = gradients(fused, inputs, wanted, create_graph)
        # Sums of as many as 13,000 numbers are taken in another order.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rectified", [False, True])
def test_sums_in_half_precision_are_rounded_once(rectified: bool) -> None:
    """Not bfloat16: the interpreter cuts its numbers off."""
    torch.manual_seed(0)
    x, added = (random(3, 16, 9, 7, dtype=torch.float16) for _ in range(2))
    scale = torch.tensor([0.0, 1.0, 0.3], device=DEVICE, dtype=torch.float16)
    joined, means = AddScaled.apply(x, added, scale, rectified)
    exact = x.float() + scale.float()[:, None, None, None] * added.float()
    exact = exact.relu() if rectified else exact
    torch.testing.assert_close(joined, exact.half(), rtol=0, atol=0)
    torch.testing.assert_close(means.sum(1), joined.float().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_means_are_those_of_operations(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = random(*shape, dtype=dtype).contiguous(memory_format=layout)
    wanted = [random(*shape[:2])]
    expected = gradients(lambda x: (x.float().mean((2, 3)),), [x], wanted)
    for create_graph in (False, True):
        found = gradients(lambda x: (Pool.apply(x).sum(1),), [x], wanted, create_graph)
        torch.testing.assert_close(found, expected)
        assert found[1].stride() == x.stride() or create_graph


@pytest.mark.parametrize("by_batch", [True, False])
@pytest.mark.parametrize(("images", "width"), [(5, 16), (64, 10), (128, 16)])
def test_a_gate_decides_as_its_layers(images: int, width: int, by_batch: bool) -> None:
    torch.manual_seed(0)
    gate = Gate(24, width).to(DEVICE)
    for weights in (gate.fc2.weight, gate.norm.weight, gate.norm.bias, gate.norm.running_mean):
        nn.init.normal_(weights)
    gate.norm.running_var.uniform_(0.5, 2)
    gate.norm.train(by_batch)
    for value, number in ((gate.threshold, 0.3), (gate.temperature, 0.7), (gate.noise, 0.6)):
        value.fill_(number)
    other = copy.deepcopy(gate)
    features, drawn = random(images, 24), random(2, images).exp()
    wanted = [random(images), random(images)]

    def fused(x: Tensor) -> tuple[Tensor, Tensor]:
        layers = (gate.fc1.bias, gate.norm.weight, gate.norm.bias, gate.fc2.weight, gate.fc2.bias)
        by = Decider(gate.norm, by_batch, gate.threshold, gate.noise, gate.temperature)
        return Decide.apply(F.linear(x, gate.fc1.weight), *layers, drawn, by)

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        skip, execute = other.fc2(other.norm(other.fc1(x)).relu()).unbind(1)
        logit = execute - skip
        noise = other.noise * (drawn[0].log() - drawn[1].log())
        return straight_through(logit - other.threshold + noise, other.temperature), logit

    results = []
    for own, compute in ((gate, fused), (other, plain)):
        leaf = features.clone().requires_grad_()
        outputs = compute(leaf)
        torch.autograd.backward(outputs, wanted)
        of_weights = [weight.grad for weight in own.parameters()]
        results.append([*(value.detach() for value in outputs), leaf.grad, *of_weights])
    # The first layer's bias has no gradient where a batch's mean is taken off; rounding is left.
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(gate.norm, name), getattr(other.norm, name))


def test_large_batches_are_left_to_operations() -> None:
    assert fits(2048, 16)
    assert not fits(2049, 16)


def test_means_go_with_what_was_joined_until_it_is_written_to() -> None:
    x = random(2, 3, 5, 5)
    with unobserved():
        joined = add_scaled(x, x, torch.ones(2, device=DEVICE))
        means = channel_means(joined)
        assert means is not None
        torch.testing.assert_close(means, joined.mean((2, 3)))
        assert channel_means(joined.clone()) is None
    assert channel_means(joined) is None
    with unobserved():
        joined.add_(1)
        assert channel_means(joined) is None
        torch.testing.assert_close(pooled(joined), joined.mean((2, 3)))


@pytest.mark.parametrize(
    "scale",
    [torch.tensor(0.5).expand(3), torch.tensor([[1.0, 5.0], [0.0, 5.0], [0.3, 5.0]])[:, 0]],
    ids=["of all", "a column"],
)
def test_factors_and_features_may_lie_anyhow(scale: Tensor) -> None:
    x, scale = random(3, 4, 5, 6), scale.to(DEVICE)
    added = random(3, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    leaf = scale.detach().clone().requires_grad_()
    joined = add_scaled(x, added, scale)
    torch.testing.assert_close(joined, x + scale[:, None, None, None] * added)
    # The gradient of a factor is linear in what is added, whose own gradient is asked for.
    (of_scale,) = torch.autograd.grad(
        add_scaled(x, added, leaf).square().sum(), leaf, create_graph=True
    )
    found = torch.autograd.grad(of_scale.sum(), added)
    again = (x + leaf[:, None, None, None] * added).square().sum()
    (of_scale,) = torch.autograd.grad(again, leaf, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(of_scale.sum(), added))


def test_a_gradient_of_features_has_what_comes_through_the_gate() -> None:
    """Where features are watched; in the trainer's steps nobody does."""
    network = convert(create_network("cifar_resnet20")).to(DEVICE).eval()
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight)
    features: list[Tensor] = []
    network.layer1[0].register_forward_hook(lambda *made: features.append(made[2]))
    images, of_features = random(2, 3, 32, 32), []
    for suit in (True, False):
        with kernels(suit):
            answer = network(images).square().sum()
            of_features.append(torch.autograd.grad(answer, features.pop())[0])
    largest = float(of_features[1].abs().max())
    torch.testing.assert_close(*of_features, rtol=1e-3, atol=1e-4 * largest)


def test_a_policy_that_scales_needs_no_gradient() -> None:
    network = convert(create_network("cifar_resnet20")).to(DEVICE).eval()
    set_policy(network, "expected")
    for _, gate in named_gates(network):
        gate.expected_rate.fill_(0.7)
    images, answers = random(2, 3, 32, 32), []
    for suit in (True, False):
        with kernels(suit), torch.inference_mode():
            answers.append(network(images))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [1, 4])
def test_a_gate_in_training_keeps_the_books_that_it_kept(images: int) -> None:
    """One image has no statistics of its own: the running ones are used, and left."""
    gate = Gate(6).to(DEVICE).train()
    gate.norm.running_mean.normal_()
    gate.noise.zero_()
    other, x = copy.deepcopy(gate), random(images, 6, 3, 3)
    with unobserved():
        decision = gate(x)
    with kernels(False):
        expected = other(x)
    torch.testing.assert_close(decision.logit, expected.logit)
    assert torch.equal(decision.scale, expected.scale)
    torch.testing.assert_close(gate.state_dict(), other.state_dict())
    assert gate.norm.num_batches_tracked == (images > 1)


def test_layers_that_are_watched_are_called() -> None:
    gate, called = Gate(6).to(DEVICE).train(), []
    gate.norm.register_forward_hook(lambda *_: called.append("norm"))
    with unobserved():
        gate(random(4, 6, 3, 3))
    assert called == ["norm"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnetv2_18"])
def test_a_network_trains_as_with_operations(name: str) -> None:
    """Of blocks that end in a ReLU and of others, and behind a stem."""
    torch.manual_seed(0)
    network = convert(create_network(name)).to(DEVICE).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for _, gate in named_gates(network):
        gate.noise.zero_()
        nn.init.normal_(gate.fc2.weight)
    other = copy.deepcopy(network)
    images, labels = random(3, 3, 32, 32), torch.randint(5, (3,), device=DEVICE)

    def step(network: nn.Module) -> list[Tensor]:
        with recorded_decisions(network) as decisions:
            logits = network(images)
            rates = [
                decision.scale.mean() + decision.logit.mean() for decision in decisions.values()
            ]
            (F.cross_entropy(logits, labels) + torch.stack(rates).mean()).backward()
        return [logits.detach(), *(weight.grad for weight in network.parameters())]

    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        with unobserved():
            fused = step(network)
        with kernels(False):
            plain = step(other)
    # A bias before a norm has a gradient of rounding alone, small beside others.
    largest = max(float(value.abs().max()) for value in plain)
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * largest)
    torch.testing.assert_close(network.state_dict(), other.state_dict())


def test_only_features_that_kernels_know_suit_them() -> None:
    x = torch.zeros(2, 3, 4, 4, device=DEVICE)
    assert suits_kernels(x) == HAS_GPU
    for other in (x.double(), x[:0], x[0], x.transpose(2, 3), x[:, :, ::2]):
        assert not suits_kernels(other)


def test_streams_wait_for_each_other_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate's for the block's input, the block's for the decision, once branches are launched."""
    happened: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            happened.append(f"{self.name} waits for {other.name}")

    monkeypatch.setattr("aigtool.gpu._has_second", lambda _: True)
    monkeypatch.setattr("aigtool.gpu._second", lambda _: Stream("gate's"))
    monkeypatch.setattr("torch.cuda.current_stream", lambda _: Stream("block's"))
    monkeypatch.setattr("torch.cuda.stream", lambda _: nullcontext())
    monkeypatch.setattr("torch.Tensor.record_stream", lambda *_: happened.append("kept"))
    network = convert(create_network("cifar_resnet20")).train()
    block = network.layer1[0]
    block.gate.register_forward_hook(lambda *_: happened.append("gate"))
    block.conv1.register_forward_hook(lambda *_: happened.append("branch"))
    with kernels(False):  # It lies on the CPU.
        block(torch.rand(2, 16, 8, 8))
    assert happened == [
        "gate's waits for block's", "gate", "branch", "block's waits for gate's", "kept",
    ]  # fmt: skip
    happened.clear()
    block.gate.policy = "closed"
    block(torch.rand(2, 16, 8, 8))
    assert happened == ["gate's waits for block's", "gate", "block's waits for gate's"]
    assert aside(torch.device("cpu"), int, "3") == 3
    rejoin(torch.device("cpu"))


def test_where_triton_cannot_compile_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("In file included from main.c\nfatal error: Python.h: No such file")

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr("aigtool.kernels.Pool.apply", fail)
    compiles = _compiles.__wrapped__
    with pytest.warns(UserWarning, match=r"cannot compile for cpu, .* fatal error: Python\.h: No"):
        assert not compiles(torch.device("cpu"), torch.float32)
    # A GPU before compute capability 8.0 has no bfloat16, and nothing is tried.
    assert not compiles(torch.device("cpu"), torch.bfloat16)
