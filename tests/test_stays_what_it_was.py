"""A converted network still answers, compiles, saves and trains as the one it was."""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import aigtool.gates
from aigtool.cli.main import run
from aigtool.conversion import convert, forced_decisions, gate_policy, named_gates
from aigtool.models.zoo import create_network
from tests.marks import but_slow
from tests.proof import enliven

TIMM_NETWORKS = ("resnet26", "resnetv2_18", "nf_resnet26", "resnet50", "resnetv2_50")
NETWORKS = (*TIMM_NETWORKS, "torchvision:resnet18", "torchvision:resnet50")
SLOW = ("nf_resnet26", "resnet50", "resnetv2_50", "torchvision:resnet50")
"""Their like is among the others: resnetv2_18 has its activations first, as nf_resnet26 has."""
SIZE = 64


@pytest.fixture(scope="module", params=but_slow(NETWORKS, SLOW))
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A network, and a converted twin with open gates."""
    yield build_pair(request.param)


@pytest.fixture(scope="module", params=but_slow(TIMM_NETWORKS, SLOW))
def timm_pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    yield build_pair(request.param)


def build_pair(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = enliven(create_network(name), SIZE)
    network = convert(copy.deepcopy(dense))
    for _, gate in named_gates(network):
        gate.policy = "open"
    return dense, network


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE)


@torch.no_grad()
def test_timms_questions(timm_pair: tuple[Any, Any], images: Tensor) -> None:
    dense, network = timm_pair
    assert network.num_classes == dense.num_classes
    assert network.pretrained_cfg == dense.pretrained_cfg
    assert network.default_cfg == dense.default_cfg
    assert network.feature_info == dense.feature_info
    features = network.forward_features(images)
    assert torch.equal(features, dense.forward_features(images))
    assert torch.equal(network.forward_head(features), dense.forward_head(features))
    pooled = network.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, dense.forward_head(features, pre_logits=True))
    if hasattr(dense, "forward_intermediates"):  # timm 1.0.20 has it for most
        for stage, expected in zip(
            network.forward_intermediates(images, intermediates_only=True),
            dense.forward_intermediates(images, intermediates_only=True),
            strict=True,
        ):
            assert torch.equal(stage, expected)
    assert torch.equal(network.get_classifier().weight, dense.get_classifier().weight)

    again = copy.deepcopy(network)
    again.reset_classifier(7)
    assert again.num_classes == 7
    assert again(images).shape == (2, 7)
    again.reset_classifier(0)
    assert torch.equal(again(images), pooled)
    assert len(list(named_gates(again))) == len(list(named_gates(network)))


@torch.no_grad()
def test_copies_and_states(pair: tuple[nn.Module, nn.Module], images: Tensor) -> None:
    dense, network = pair
    expected = network(images)
    assert torch.equal(expected, dense(images))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin = copy.deepcopy(network)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(network(images), expected)
    twin.load_state_dict(state)
    assert torch.equal(twin(images), expected)
    missing, unexpected = dense.load_state_dict(
        {key: value for key, value in state.items() if ".gate." not in key}
    )
    assert not missing
    assert not unexpected


@pytest.mark.parametrize("name", but_slow(NETWORKS, (*SLOW, "resnetv2_18")))
def test_stripping_gives_the_source_its_weights_back(name: str, tmp_path: Path) -> None:
    source = create_network(name, num_classes=5)
    weights, gated, dense = (
        tmp_path / file for file in ("w.pth", "g.safetensors", "d.safetensors")
    )
    torch.save(source.state_dict(), weights)
    options = ["--num-classes", "5", "--weights", str(weights), "--out", str(gated)]
    assert run(["convert", name, *options]) == 0
    assert run(["convert", str(gated), "--strip", "--out", str(dense)]) == 0
    again = create_network(name, num_classes=5)
    again.load_state_dict(safetensors.torch.load_file(dense))
    state = source.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def breaks(network: nn.Module, images: Tensor) -> int:
    torch._dynamo.reset()
    return int(torch._dynamo.explain(network)(images).graph_break_count)


@pytest.mark.parametrize(
    "pair", but_slow(NETWORKS, {*NETWORKS} - {"torchvision:resnet18"}), indirect=True
)
def test_compiling_for_training_breaks_no_more_graphs(
    pair: tuple[nn.Module, nn.Module], images: Tensor
) -> None:
    dense, network = (copy.deepcopy(net).train() for net in pair)
    for _, gate in named_gates(network):
        gate.policy = "argmax"
    assert breaks(network, images) == breaks(dense, images)


@pytest.mark.slow
def test_a_compiled_network_trains_alike() -> None:
    _, network = build_pair("resnet50")
    for _, gate in named_gates(network):
        gate.policy = "argmax"
        gate.noise.zero_()
        nn.init.normal_(gate.fc2.weight)
    network.train()
    x = torch.randn(4, 3, SIZE, SIZE)

    def gradients(run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        network.zero_grad()
        run(x).square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    expected = gradients(copy.copy(network))
    torch._dynamo.reset()
    compiled = gradients(torch.compile(network, backend="aot_eager"))
    for name, gradient in expected.items():
        # Autograd sums the same terms in another order.
        scale = gradient.abs().max()
        assert (compiled[name] - gradient).abs().max() <= 1e-3 * scale + 1e-6, name


@torch.no_grad()
def test_channels_last_stays_so(pair: tuple[nn.Module, nn.Module], images: Tensor) -> None:
    dense, network = (copy.deepcopy(net).to(memory_format=torch.channels_last) for net in pair)
    images = images.contiguous(memory_format=torch.channels_last)
    expected = dense(images)
    assert torch.equal(network(images), expected)

    def check(_: nn.Module, __: Any, output: Tensor) -> None:
        assert output.is_contiguous(memory_format=torch.channels_last)

    pattern = {}
    for number, (name, gate) in enumerate(named_gates(network)):
        gate.policy = "argmax"
        network.get_submodule(name).register_forward_hook(check)
        pattern[name] = torch.tensor([number % 2 == 0, number % 3 == 0])
    with forced_decisions(network, pattern):
        network(images)


@pytest.mark.parametrize("dtype", but_slow([torch.bfloat16, torch.half], [torch.half]))
@torch.no_grad()
def test_lower_precision(
    dtype: torch.dtype, pair: tuple[nn.Module, nn.Module], images: Tensor
) -> None:
    dense, network = (copy.deepcopy(net).to(dtype) for net in pair)
    images = images.to(dtype)
    output = network(images)
    assert output.dtype == dtype
    assert torch.equal(output, dense(images))
    for _, gate in named_gates(network):
        gate.policy = "argmax"
    assert network(images).dtype == dtype
    converted = convert(copy.deepcopy(dense))
    assert {p.dtype for p in converted.parameters()} == {dtype}
    with gate_policy(converted, "open"):
        assert torch.equal(converted(images), output)


def test_autocast(pair: tuple[nn.Module, nn.Module], images: Tensor) -> None:
    dense, network = (copy.deepcopy(net) for net in pair)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images), dense(images))
        for _, gate in named_gates(network):
            gate.policy = "argmax"
        assert network(images).isfinite().all()
    network.train()
    # Apart: within one autocast, PyTorch 2.6 keeps the weights cast without a gradient.
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


class SameNoise:
    """Noise that depends on the gate and the image alone, however a batch is shared out."""

    def __init__(self, first: int, count: int, total: int) -> None:
        self.share = slice(first, first + count)
        self.total = total
        self.gates = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.gates += 1
        draw = torch.Generator().manual_seed(self.gates)
        uniform = torch.rand(self.total, generator=draw, dtype=like.dtype)
        return torch.logit(uniform)[self.share]


class MeanOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    backward = forward  # The loss of every process depends on it in the same way.


def synchronised_norm(
    x: Tensor,
    running_mean: Any,
    _running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``batch_norm`` over all processes, as SyncBatchNorm, which does not run on a CPU."""
    if running_mean is None:  # weight standardisation, which sees no images
        return PLAIN_NORM(x, None, None, weight, bias, training, momentum, eps)
    over = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    centered = x - MeanOverProcesses.apply(x.mean(over)).view(shape)
    spread = MeanOverProcesses.apply(centered.square().mean(over))
    normal = centered * (spread + eps).rsqrt().view(shape)
    return normal * weight.view(shape) + bias.view(shape)


PLAIN_NORM = F.batch_norm


def gradients_of(network: nn.Module, x: Tensor, labels: Tensor, noise: Any) -> dict[str, Tensor]:
    aigtool.gates.logistic_noise = noise
    network.zero_grad()
    F.cross_entropy(network(x), labels).backward()
    names = (name.removeprefix("module.") for name, _ in network.named_parameters())
    return dict(zip(names, (p.grad.clone() for p in network.parameters()), strict=True))


def work(rank: int, folder: str) -> None:
    """One of two processes: its gradients against those of one process on the joint batch."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    differences = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        network = convert(enliven(create_network(name, num_classes=5), 32)).double().train()
        for _, gate in named_gates(network):
            nn.init.normal_(gate.fc2.weight)
        x, labels = torch.randn(4, 3, 32, 32).double(), torch.randint(5, (4,))
        expected = gradients_of(network, x, labels, SameNoise(0, 4, 4))
        share = slice(2 * rank, 2 * rank + 2)
        F.batch_norm = synchronised_norm
        parallel = DistributedDataParallel(network)
        actual = gradients_of(parallel, x[share], labels[share], SameNoise(2 * rank, 2, 4))
        F.batch_norm = PLAIN_NORM
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        # A bias before a norm has a gradient of zero, but for rounding.
        differences[name] = {
            key: float((actual[key] - gradient).abs().max())
            / max(float(gradient.abs().max()), 1e-6 * largest)
            for key, gradient in expected.items()
        }
    torch.save(differences, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        differences = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(differences) == set(NETWORKS)
        for found in differences.values():
            # In float64, but for the gates' logits, which are float32.
            worst = max(found, key=found.__getitem__)
            assert found[worst] < 1e-4, worst
