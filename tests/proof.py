"""The proof that a network was converted exactly, and how many blocks its source says it has."""

import copy
import importlib
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import timm
import torch
import torchvision.models.resnet
from torch import Tensor, nn

from aigtool.conversion import convert, forced_decisions, gate_policy, named_gates
from aigtool.device import to_channels_last
from aigtool.discovery import find_blocks
from aigtool.inference.serving import serve
from aigtool.inference.skipping import NEIGHBOURS
from aigtool.models.zoo import TORCHVISION, create_network

BOUND = 1e-5
"""Of the largest value: what float rounding may differ by."""

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)


@dataclass(frozen=True)
class Proof:
    """What was found when a network was converted and run; differences are shares of the largest
    value of its output.

    Attributes:
        gates: How many blocks got a gate.
        size: Height and width of the input, the smallest that the network takes.
        seconds: What the conversion took.
        rounding: How far the original differs between a batch of 3 and three batches of 1.
        opened: How far open gates are from the original.
        closed: How far closed gates are from open ones.
        skipped: How far skipping is from masking, under random gates.
        served: In double precision, how far a network made ready to serve is from it, with
            features computed where they lie and with gathered ones; and beside each how far it is
            from itself with weights moved by a unit in the last place.
        gradients: Whether a backward pass gave finite gradients everywhere and non-zero ones in
            the last layer of every gate.
    """

    gates: int
    size: int
    seconds: float
    rounding: float
    opened: float
    closed: float
    skipped: float
    served: tuple[tuple[float, float], ...]
    gradients: bool

    @property
    def holds(self) -> bool:
        bound = max(BOUND, self.rounding)
        return (
            self.opened <= bound
            and self.skipped <= bound
            and all(far <= max(1e-10, MAGNIFIED * moved) for far, moved in self.served)
            and self.closed >= 0.01
            and self.gradients
        )


def prove(name: str, size: int | None = None, **options: Any) -> Proof:
    """Build a network with random weights, convert it, and compare it with what it was.

    Blocks that cannot be gated are left as they are. Images are as small as the network takes
    unless their ``size`` is given.
    """
    torch.manual_seed(0)
    network = create_network(name, options=options)
    size = size or smallest_size(network)
    enliven(network, size)
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = network(x)
        rounding = difference(torch.cat([network(image[None]) for image in x]), expected)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        convert(network, skip_unsplittable=True)
    seconds = time.perf_counter() - start

    with torch.no_grad():
        with gate_policy(network, "open"):
            opened = network(x)
        with gate_policy(network, "closed"):
            closed = network(x)
    pattern = {gate: torch.rand(3) < 0.5 for gate, _ in named_gates(network)}
    masks = {gate: chosen.float().requires_grad_() for gate, chosen in pattern.items()}
    with torch.no_grad(), forced_decisions(network, pattern):
        skipped = network(x)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with forced_decisions(network, masks):
        masked = network(x).detach()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return Proof(
        gates=len(pattern),
        size=size,
        seconds=seconds,
        rounding=rounding,
        opened=difference(opened, expected),
        closed=difference(closed, opened),
        skipped=difference(skipped, masked),
        served=tuple(_served(network, x, pattern)),
        gradients=_gradients(network, x),
    )


MAGNIFIED = 10
"""How much farther a served network may be than one whose weights were moved: most are 1 to 2 times
as far, and where hundreds of layers leave nothing of a digit, 8 times."""
WAYS = (
    {"WIDE": 0, "LARGE": 0},
    {"WIDE": 2**40},
    {"WIDE": 2**40, "HEAVY": 0},
    {"WIDE": 0, "LARGE": 2**40, "CACHED": 2**13},
)
"""Limits under which images are computed where they lie, gathered and put back or added where they
lie, and gathered in chunks."""


def _served(
    network: nn.Module, x: Tensor, pattern: dict[str, Tensor]
) -> Iterator[tuple[float, float]]:
    """In double precision: folded norms round otherwise, and some networks magnify that."""
    network, x = copy.deepcopy(network).double(), x.double()
    served, moved = serve(network, tuple(x.shape[1:])), _moved(network)

    limits = {"NEIGHBOURS": NEIGHBOURS}  # an empty list of changes is refused

    @torch.no_grad()
    def apart(
        x: Tensor, pattern: dict[str, Tensor], *ways: dict[str, int]
    ) -> Iterator[tuple[float, float]]:
        told = (forced_decisions(each, pattern) for each in (network, served, moved))
        with ExitStack() as stack:
            for forced in told:
                stack.enter_context(forced)
            expected = network(x)
            itself = difference(moved(x.to(memory_format=torch.channels_last)), expected)
            for way in ways:
                with mock.patch.multiple("aigtool.inference.skipping", **limits | way):
                    yield difference(served(x.clone()), expected), itself

    yield from apart(x, pattern, *WAYS)
    for told in (torch.zeros(3), torch.ones(3)):
        yield from apart(x, dict.fromkeys(pattern, told.bool()), {})
    yield from apart(x[:1], {name: executed[:1] for name, executed in pattern.items()}, {})


@torch.no_grad()
def _moved(network: nn.Module) -> nn.Module:
    """Return a copy whose weights are other by at most a unit in the last place, laid out alike.

    It is as far away as rounding otherwise leads: in networks of hundreds of layers with random
    weights a part of the output, and where a layer computes in single precision, that of it.
    """
    moved = to_channels_last(copy.deepcopy(network))
    generator = torch.Generator().manual_seed(0)
    for weight in (*moved.parameters(), *moved.buffers()):
        if weight.is_floating_point():
            units = torch.randint(-1, 2, weight.shape, generator=generator)
            weight.mul_(1 + units * torch.finfo(weight.dtype).eps)
    return moved


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _gradients(network: nn.Module, x: Tensor) -> bool:
    network.train()
    output = network(x)
    (output * torch.randn_like(output)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return all(g is not None and bool(g.isfinite().all()) for g in gradients.values()) and all(
        bool(gate.fc2.weight.grad.any()) for _, gate in named_gates(network)
    )


def smallest_size(network: nn.Module) -> int:
    """The smallest of some sizes, or else its own, that a network takes for a batch."""
    own = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for size in (*(size for size in SIZES if size < own), own):
        try:
            with torch.no_grad():
                network(torch.zeros(3, 3, size, size))
        except (RuntimeError, AssertionError):
            if size == own:
                raise
        else:
            return size
    raise AssertionError


def enliven(network: nn.Module, size: int = 64) -> nn.Module:
    """Draw norm weights and gains from 0.5 to 1.5 and take running statistics from a pass.

    timm starts each block's last norm or gain at zero, so that a fresh block adds nothing and a
    test of gates would be blind.
    """
    for name, parameter in network.named_parameters():
        if (parameter.ndim <= 1 and not name.endswith("bias")) or name.endswith("gain"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    norms = [m for m in network.modules() if getattr(m, "running_var", None) is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, size, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def count_blocks_in_source(name: str) -> int:
    """Add up the stage depths that timm's, torchvision's or our own source gives a network."""
    if name.startswith(TORCHVISION):
        with mock.patch.object(torchvision.models.resnet, "_resnet") as build:
            getattr(torchvision.models, name.removeprefix(TORCHVISION))()
        return sum(build.call_args.args[1])
    if name.startswith("cifar_resnet"):
        return (int(name.removeprefix("cifar_resnet")) - 2) // 2
    entry = timm.models.model_entrypoint(name)
    module = importlib.import_module(entry.__module__)
    with mock.patch.object(module, "build_model_with_cfg") as build:
        entry()
    given = build.call_args.kwargs
    if "layers" in given:
        return sum(given["layers"])
    return sum(_depths(given["model_cfg"]))


def _depths(config: Any) -> Iterator[int]:
    if hasattr(config, "depths"):
        yield from config.depths
    elif hasattr(config, "blocks"):
        for blocks in config.blocks:
            yield from (block.d for block in (blocks if isinstance(blocks, tuple) else (blocks,)))


def kinds_of(network: nn.Module) -> set[str]:
    """The kinds of its blocks: class, and the layers of the shortcut."""
    kinds = set()
    for name, found in find_blocks(network).blocks.items():
        block = network.get_submodule(name)
        used = (getattr(block, used, None) for used in found.parts.shortcut.__code__.co_names)
        layers = [
            type(layer).__name__
            for child in used
            if isinstance(child, nn.Module)
            for layer in child.modules()
            if not list(layer.children()) and not isinstance(layer, nn.Identity)
        ]
        module = type(block).__module__.replace("timm.models.", "").replace(".models", "")
        kinds.add(f"{module}.{type(block).__name__}, shortcut {' + '.join(layers) or 'identity'}")
    return kinds
