"""Gate the residual blocks of a network, and ask a gated network questions."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aigtool.blocks import GatedBlock, Split, split
from aigtool.discovery import Discovery, find_blocks, find_splits
from aigtool.errors import UserError
from aigtool.gates import POLICIES, Decision, Gate, Policy
from aigtool.modes import in_mode
from aigtool.rehearsal import unsuitable
from aigtool.selection import check_target, parse_targets, ungated_blocks

Network = TypeVar("Network", bound=nn.Module)


def convert(
    network: Network,
    *,
    width: int = 16,
    ungated: str | Collection[str] = (),
    targets: str | Sequence[float] | None = None,
    shortcuts: Mapping[str, str] | None = None,
    skip_unsplittable: bool = False,
    input_size: tuple[int, int, int] | None = None,
) -> Network:
    """Put a gate before each residual block of a network, in place.

    The state dict keeps every key and gains those of the gates. With the policy ``open`` the
    network computes what it computed before.

    Args:
        network: A trained network; it is changed and returned, its weights are not copied.
        width: d, the units of each gate's hidden layer (16 in Veit and Belongie, ECCV 2018).
        ungated: Blocks to leave without a gate: ``first:N``, ``last:N``, ``downsample``, or
            patterns of names such as ``layer1.*``.
        targets: An execution rate for each residual block, in order, for training each gate on
            its own; a target of 1 leaves the block without a gate. Or a text that
            ``parse_targets`` reads, such as a schedule of the paper.
        shortcuts: By name of a block both of whose branches have as many layers, the name of a
            layer on its shortcut.
        skip_unsplittable: Whether to leave residual blocks that cannot be gated as they are, with
            a warning, and gate the others.
        input_size: Channels, height and width of the network's input, where a rehearsal on what
            ``pretrained_cfg`` says, or else on 224 x 224, would fail.

    Returns:
        ``network``.

    Raises:
        UserError: It is no network or has gates already, there is no residual block, one cannot
            be gated, a name or pattern is no block's, or ``targets`` has another length or values
            outside (0, 1].

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18(), ungated=["first"])
        >>> [name for name, gate in named_gates(network)][:2]
        ['layer1.1', 'layer2.0']
    """
    if not isinstance(network, nn.Module):
        raise UserError(
            f"convert was given {network!r}: expected a network (torch.nn.Module); "
            "create_network builds one by name"
        )
    if any(True for _ in named_gates(network)):
        raise UserError("the network has gates already: convert the network as it was before")
    if width < 1:
        raise UserError(f"gate width {width}: expected a whole number of at least 1")
    found = find_blocks(network, input_size=input_size, shortcuts=shortcuts)
    _check_found(network, found, skip_unsplittable)
    for name, target in _wanted(found, ungated, targets).items():
        gate = Gate(found.blocks[name].channels, width)
        gate.target = target
        _put(network, name, found.blocks[name].parts, gate)
    return network


def put_gates(
    network: Network, gates: Mapping[str, Gate], shortcuts: Mapping[str, str] | None = None
) -> Network:
    """Put given gates before the named blocks of a network, in place, without a rehearsal.

    Args:
        network: As it was when it was converted first, before gating.
        gates: By name of a block.
        shortcuts: As for ``convert``.

    Returns:
        ``network``.

    Raises:
        AttributeError, NotResidualError: A name is no module's, or no residual block's.

    Example:
        >>> import torchvision
        >>> network = put_gates(torchvision.models.resnet18(), {"layer1.0": Gate(64)})
        >>> [name for name, gate in named_gates(network)]
        ['layer1.0']
    """
    for name, gate in gates.items():
        parts = split(network.get_submodule(name), (shortcuts or {}).get(name))
        _put(network, name, parts, gate)
    return network


def _put(network: nn.Module, name: str, parts: Split, gate: Gate) -> None:
    block = network.get_submodule(name)
    if (weight := next(block.parameters(), None)) is not None:
        gate.to(weight.device, weight.dtype)
    _replace(network, name, GatedBlock(block, parts, gate).train(block.training))


def _check_found(network: nn.Module, found: Discovery, skip_unsplittable: bool) -> None:
    refused, untraced = _listed(found.refused), _listed(found.untraced)
    if found.blocks and refused:
        total = len(found.blocks) + len(found.refused)
        problem = f"cannot gate {len(found.refused)} of {total} residual blocks: {refused}"
        if not skip_unsplittable:
            raise UserError(
                f"{problem}; mend them, or gate the other {len(found.blocks)} alone with "
                "--skip-unsplittable (from Python, skip_unsplittable=True)"
            )
        warnings.warn(problem, stacklevel=3)
    if found.blocks and untraced:
        warnings.warn(f"not looked into, so not gated: {untraced}", stacklevel=3)
    if not found.blocks:
        raise UserError(
            f"{type(network).__name__} has no residual block that can be gated: looked for a "
            "module inside it that ends in the addition of two branches which both start from the "
            f"module's input{f'; found {refused}' * bool(refused)}"
            f"{f'; could not look into {untraced}' * bool(untraced)}"
        )


def _listed(reasons: Mapping[str, str], shown: int = 5) -> str:
    """List names by reason, such as ``stem, layer1.0 (its branches ...); layer2.0 (...)``."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    listed = [f"{_cut(of, ', ', shown)} ({reason})" for reason, of in names.items()]
    return _cut(listed, "; ", shown)


def _cut(items: Sequence[str], separator: str, shown: int) -> str:
    more = [f"and {len(items) - shown} more"] * (len(items) > shown)
    return separator.join([*items[:shown], *more])


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
    found: Discovery, ungated: str | Collection[str], targets: str | Sequence[float] | None
) -> dict[str, float | None]:
    """The blocks to gate, each with its own target if it has one."""
    names = list(found.blocks)
    wanted: dict[str, float | None] = dict.fromkeys(names)
    if targets is not None:
        rates = parse_targets(targets) if isinstance(targets, str) else targets
        if len(rates) != len(names):
            raise UserError(
                f"targets given: {len(rates)}; residual blocks: {len(names)}; expected one a block"
            )
        checked = zip(names, map(check_target, rates), strict=True)
        wanted = {name: target for name, target in checked if target < 1}
    left_out = ungated_blocks([ungated] if isinstance(ungated, str) else ungated, found.blocks)
    wanted = {name: target for name, target in wanted.items() if name not in left_out}
    if not wanted:
        raise UserError(
            f"no block is left to gate: all {len(names)} have a target of 1 or are left ungated"
        )
    return wanted


def named_gates(network: nn.Module) -> Iterator[tuple[str, Gate]]:
    """Yield each gated block's name and gate, in the order of ``named_modules``."""
    for name, module in network.named_modules():
        if isinstance(module, GatedBlock):
            yield name, module.gate


def named_shortcuts(network: nn.Module) -> dict[str, str]:
    """Return, by name of each gated block whose shortcut was told by one, the name of a layer."""
    return {
        name: module.parts.named
        for name, module in network.named_modules()
        if isinstance(module, GatedBlock) and module.parts.named is not None
    }


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


def set_policy(network: nn.Module, policy: Policy) -> None:
    """Let all gates of a network follow ``policy``.

    Raises:
        UserError: There is no such policy.
    """
    if policy not in POLICIES:
        raise UserError(f"gate policy {policy!r}: expected one of {', '.join(POLICIES)}")
    for _, gate in named_gates(network):
        gate.policy = policy


class Shapes(NamedTuple):
    """Of the features that a block took and gave for one image, ``(1, C, H, W)``."""

    taken: torch.Size
    given: torch.Size


def block_shapes(network: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Shapes]:
    """Run a network on zeros, and return what its residual blocks took and gave.

    Args:
        network: Gated or not; evaluated, with its gates open.
        input_size: Channels, height, width.

    Returns:
        By name, in the order of execution, without a rehearsal: what is cut into two branches and
        maps features to features is taken for a block.

    Raises:
        UserError: The network cannot be run on an input of that size.

    Example:
        >>> import torchvision
        >>> shapes = block_shapes(torchvision.models.resnet18(), (3, 32, 32))
        >>> shapes["layer2.0"].taken, shapes["layer2.0"].given
        (torch.Size([1, 64, 8, 8]), torch.Size([1, 128, 4, 4]))
    """
    shapes: dict[str, Shapes] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(_block: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
            features = [value for value in (*taken, given) if isinstance(value, Tensor)]
            if len(taken) == 1 and [value.ndim for value in features] == [4, 4]:
                shapes[name] = Shapes(*(value.shape for value in features))

        return note

    weight = next(network.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    with ExitStack() as stack:
        for name, parts in find_splits(network).items():
            if isinstance(parts, Split):
                hook = network.get_submodule(name).register_forward_hook(noting(name))
                stack.callback(hook.remove)
        stack.enter_context(in_mode(network, training=False))
        stack.enter_context(gate_policy(network, "open"))
        stack.enter_context(torch.no_grad())
        try:
            network(image)
        # A network may raise anything on an input that does not suit it.
        except Exception as error:
            raise unsuitable(network, input_size, error) from error
    return shapes


@contextmanager
def recorded_decisions(network: nn.Module) -> Iterator[dict[str, Decision]]:
    """Record what each gate decided in the latest forward pass.

    A network compiled with ``torch.compile`` must be called first within: PyTorch does not look
    for hooks again.

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

    Raises:
        UserError: Within, where the network is given another number of images.

    Example:
        >>> import torchvision
        >>> network = convert(torchvision.models.resnet18()).eval()
        >>> with forced_decisions(network, {"layer1.0": torch.tensor([True, False])}):
        ...     logits = network(torch.zeros(2, 3, 32, 32))
    """

    def forcer(given: Tensor) -> Callable[[nn.Module, tuple[Tensor], Decision], Decision]:
        def force(_gate: nn.Module, inputs: tuple[Tensor], _decided: Decision) -> Decision:
            if len(given) != len(inputs[0]):
                raise UserError(
                    f"decisions of {len(given)} images are held, and {len(inputs[0])} came: "
                    "expected the same batch"
                )
            scale = given.to(inputs[0])
            logit = torch.where(scale.detach() > 0, torch.inf, -torch.inf)
            return Decision(scale, logit, "scaled" if scale.requires_grad else "chosen")

        return force

    gates = dict(named_gates(network))
    with ExitStack() as stack:
        for name, given in executed.items():
            stack.callback(gates[name].register_forward_hook(forcer(given)).remove)
        yield
