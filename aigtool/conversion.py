"""Gate the residual blocks of a network, and ask a gated network questions."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from aigtool.blocks import GatedBlock, NotResidualError, Split, UnsplittableBlockError, split
from aigtool.errors import UserError
from aigtool.gates import POLICIES, Decision, Gate, Policy

Network = TypeVar("Network", bound=nn.Module)


def find_blocks(network: nn.Module) -> dict[str, Split]:
    """Find the residual blocks of a network.

    A block is the outermost module whose trace ends in an addition of two branches from its
    input. Nothing inside a block is a block: attention modules look like blocks too. A block that
    ``split`` cannot cut is left out, and nothing inside it is looked at.

    Args:
        network: Any module; its gated blocks are blocks too.

    Returns:
        Each block's name and parts, in the order of ``named_modules``.

    Example:
        >>> import torchvision
        >>> list(find_blocks(torchvision.models.resnet18()))[:3]
        ['layer1.0', 'layer1.1', 'layer2.0']
    """
    found: dict[str, Split] = {}

    def visit(parent: nn.Module, prefix: str) -> None:
        for name, child in parent.named_children():
            if isinstance(child, GatedBlock):
                found[prefix + name] = child.parts
                continue
            try:
                found[prefix + name] = split(child)
            except UnsplittableBlockError:
                continue
            except NotResidualError:
                visit(child, f"{prefix}{name}.")

    visit(network, "")
    return found


def convert(
    network: Network,
    *,
    width: int = 16,
    targets: Sequence[float] | None = None,
    blocks: Collection[str] | None = None,
) -> Network:
    """Put a gate before each residual block of a network, in place.

    The state dict keeps every key and gains those of the gates. With the policy ``open`` the
    network computes what it computed before.

    Args:
        network: A trained network; it is changed and returned, its weights are not copied.
        width: d, the units of each gate's hidden layer (16 in Veit and Belongie, ECCV 2018).
        targets: An execution rate for each residual block, in order, for training each gate on
            its own; a target of 1 leaves the block without a gate.
        blocks: Names of the blocks to gate; all residual blocks by default.

    Returns:
        ``network``.

    Raises:
        UserError: There is no residual block, it is converted already, a name is no block, or
            ``targets`` has another length or values outside (0, 1].

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18())
        >>> [name for name, gate in named_gates(network)][:2]
        ['layer1.0', 'layer1.1']
    """
    if any(True for _ in named_gates(network)):
        raise UserError("the network has gates already: convert the network as it was before")
    if width < 1:
        raise UserError(f"gate width {width}: expected a whole number of at least 1")
    found = find_blocks(network)
    if not found:
        raise UserError(
            f"{type(network).__name__} has no residual block: looked for a module inside it that "
            "ends in the addition of two branches which both start from the module's input"
        )
    wanted = _wanted(found, targets, blocks)
    for name, target in wanted.items():
        block = network.get_submodule(name)
        gate = Gate(found[name].channels, width)
        gate.target = target
        if (weight := next(block.parameters(), None)) is not None:
            gate.to(weight.device, weight.dtype)
        _replace(network, name, GatedBlock(block, found[name], gate).train(block.training))
    return network


def strip(network: Network) -> Network:
    """Take the gates out of a network, in place: the inverse of ``convert``.

    Example:
        >>> import torchvision
        >>> network = torchvision.models.resnet18()
        >>> keys = list(network.state_dict())
        >>> list(strip(convert(network)).state_dict()) == keys
        True
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, GatedBlock):
            _replace(network, name, module.ungated())
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _wanted(
    found: Mapping[str, Split], targets: Sequence[float] | None, blocks: Collection[str] | None
) -> dict[str, float | None]:
    """The blocks to gate, each with its own target if it has one."""
    if targets is None:
        wanted: dict[str, float | None] = dict.fromkeys(found)
    else:
        if len(targets) != len(found):
            raise UserError(
                f"{len(targets)} targets given for {len(found)} residual blocks: give one a block"
            )
        if bad := [target for target in targets if not 0 < target <= 1]:
            raise UserError(f"target {bad[0]}: expected a rate above 0 and at most 1")
        wanted = {name: t for name, t in zip(found, targets, strict=True) if t < 1}
    if blocks is not None:
        if unknown := [name for name in blocks if name not in found]:
            raise UserError(
                f"{unknown[0]!r} is no residual block of the network: expected names among "
                f"{', '.join(found)}"
            )
        wanted = {name: target for name, target in wanted.items() if name in blocks}
    if not wanted:
        raise UserError("no block is left to gate: give at least one block a target under 1")
    return wanted


def named_gates(network: nn.Module) -> Iterator[tuple[str, Gate]]:
    """Yield each gated block's name and gate, in the order of execution."""
    for name, module in network.named_modules():
        if isinstance(module, GatedBlock):
            yield name, module.gate


@contextmanager
def gate_policy(network: nn.Module, policy: Policy) -> Iterator[None]:
    """Let all gates of a network follow ``policy`` within the block, then as before.

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18()).eval()
        >>> with gate_policy(network, "open"), torch.no_grad():
        ...     logits = network(torch.zeros(1, 3, 32, 32))
    """
    before = {gate: gate.policy for _, gate in named_gates(network)}
    set_policy(network, policy)
    try:
        yield
    finally:
        for gate, old in before.items():
            gate.policy = old


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode within the block; each module then goes back to its own.

    Example:
        >>> network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())
        >>> with evaluating(network):
        ...     inside = network.training
        >>> inside, network[0].training, network[1].training
        (False, True, False)
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def set_policy(network: nn.Module, policy: Policy) -> None:
    """Let all gates of a network follow ``policy``.

    Raises:
        UserError: There is no such policy.
    """
    if policy not in POLICIES:
        raise UserError(f"gate policy {policy!r}: expected one of {', '.join(POLICIES)}")
    for _, gate in named_gates(network):
        gate.policy = policy


@contextmanager
def recorded_decisions(network: nn.Module) -> Iterator[dict[str, Decision]]:
    """Record what each gate decided in the latest forward pass.

    Args:
        network: A gated network.

    Yields:
        A dict from block name to decision, filled by each forward pass in the order of execution.
        In training its scales carry the straight-through gradient.

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18()).eval()
        >>> with recorded_decisions(network) as decisions, torch.no_grad():
        ...     logits = network(torch.zeros(2, 3, 32, 32))
        >>> decisions["layer4.1"].scale
        tensor([1., 1.])
    """
    decisions: dict[str, Decision] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor], Decision], None]:
        def record(_gate: nn.Module, _inputs: tuple[Tensor], decision: Decision) -> None:
            decisions[name] = decision

        return record

    with ExitStack() as stack:
        for name, gate in named_gates(network):
            stack.callback(gate.register_forward_hook(recorder(name)).remove)
        yield decisions


@contextmanager
def forced_decisions(network: nn.Module, executed: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the gates' decisions for one batch by given ones.

    Args:
        network: A gated network.
        executed: For each block named, ``(N,)``, true or 1 for the images that execute it. A
            tensor that requires a gradient makes the block run for all images and multiply.

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18()).eval()
        >>> with forced_decisions(network, {"layer1.0": torch.tensor([True, False])}):
        ...     logits = network(torch.zeros(2, 3, 32, 32))
    """

    def forcer(given: Tensor) -> Callable[[nn.Module, tuple[Tensor], Decision], Decision]:
        def force(_gate: nn.Module, inputs: tuple[Tensor], _decided: Decision) -> Decision:
            scale = given.to(inputs[0])
            logit = torch.where(scale.detach() > 0, torch.inf, -torch.inf)
            return Decision(scale, logit, "scaled" if scale.requires_grad else "chosen")

        return force

    gates = dict(named_gates(network))
    with ExitStack() as stack:
        for name, given in executed.items():
            stack.callback(gates[name].register_forward_hook(forcer(given)).remove)
        yield
