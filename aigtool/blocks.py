"""The splitter, which cuts any residual block at its join, and the gated block made from it."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from aigtool.gates import Decision, Gate

_ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})

Part = Callable[..., Any]
"""A piece of a block as a function of the module that owns the layers, then its inputs."""


class NotResidualError(ValueError):
    """A module is no residual block that can be cut; the message says what was found."""


class UnsplittableBlockError(NotResidualError):
    """A residual block that cannot be gated as it is; the message says why."""


@dataclass(frozen=True)
class Split:
    """A residual block ``tail(shortcut + residual)``, cut at its last addition.

    Attributes:
        head: ``(block, x) -> (for_residual, for_shortcut)``: the values, each a tensor whose first
            dimension is the batch, that the two branches start from. Layers that both branches
            share (the first norm of a pre-activation block) run here, once.
        residual: ``(block, *for_residual) -> residual``.
        shortcut: ``(block, *for_shortcut) -> shortcut``.
        tail: ``(block, sum) -> output``: what follows the addition, such as an activation, or
            ``None``. It may write in place.
        channels: Channels of the block's input.
    """

    head: Part
    residual: Part
    shortcut: Part
    tail: Part | None
    channels: int


class _BlockTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def split(block: nn.Module) -> Split:
    """Cut a residual block into head, residual, shortcut and tail.

    The block is traced with ``torch.fx``, each direct child kept whole. Of the two addends of the
    last addition, the shortcut is the one with fewer parametrised layers behind it.

    Args:
        block: A module of one tensor input, ``(N, C, H, W)``.

    Returns:
        The four parts. They look layers up by name in the module given to them, so they serve the
        block itself, a copy of it, or a ``GatedBlock`` that has taken over its layers.

    Raises:
        NotResidualError: The module cannot be traced, or does not end in an addition whose addends
            both reach its input.
        UnsplittableBlockError: It does, but both branches have as many parametrised layers, a
            branch writes in place into what the other reads, its trace depends on the training
            mode, or it has an attribute ``gate``.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> block = BasicBlock(8, 8).eval()
        >>> parts, x = split(block), torch.randn(2, 8, 5, 5)
        >>> for_residual, for_shortcut = parts.head(block, x)
        >>> residual = parts.residual(block, *for_residual)
        >>> out = parts.tail(block, parts.shortcut(block, *for_shortcut) + residual)
        >>> torch.equal(out, block(x))
        True
    """
    graph = _trace(block)
    order = {node: position for position, node in enumerate(graph.nodes)}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    addition, output = _last_addition(block, graph)
    first, second = addition.all_input_nodes
    behind = {addend: _ancestors(addend) for addend in (first, second)}
    if not all(inputs[0] in nodes for nodes in behind.values()):
        raise NotResidualError("its last addition has an addend that does not reach the input")

    shared = behind[first] & behind[second]
    layers = {addend: _layers(block, nodes - shared) for addend, nodes in behind.items()}
    if layers[first] == layers[second]:
        raise UnsplittableBlockError(
            f"its two branches have {layers[first]} parametrised layers each, "
            "so neither is plainly the shortcut"
        )
    if hasattr(block, "gate"):
        raise UnsplittableBlockError("it already has an attribute called gate")
    if str(graph) != str(_trace_in_mode(block, training=not block.training)):
        raise UnsplittableBlockError(
            "it reads self.training, which a trace fixes; let a module such as nn.Dropout read it"
        )
    shortcut, residual = sorted(behind, key=lambda addend: layers[addend])

    def crossing(addend: fx.Node) -> list[fx.Node]:
        """The shared values that the branch ending in ``addend`` starts from."""
        if addend in shared:
            return [addend]
        used = {user for node in behind[addend] - shared for user in node.all_input_nodes}
        return sorted((n for n in used & shared if n.op != "get_attr"), key=order.__getitem__)

    for_residual, for_shortcut = crossing(residual), crossing(shortcut)
    for value in {*for_residual} & {*for_shortcut}:
        if any(_writes_in_place(block, user) for user in set(value.users) - shared - {addition}):
            raise UnsplittableBlockError(
                "a branch writes in place into a value that the other reads too; "
                "use an operation that is not in place there"
            )
    return Split(
        head=_function(inputs[:1], (tuple(for_residual), tuple(for_shortcut)), order),
        residual=_function(for_residual, residual, order),
        shortcut=_function(for_shortcut, shortcut, order),
        tail=None if output is addition else _function([addition], output, order),
        channels=_input_channels(block, inputs[0], graph),
    )


def _trace(block: nn.Module) -> fx.Graph:
    parameters = signature(block.forward).parameters.values()
    optional = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    try:
        graph = _BlockTracer().trace(block, concrete_args=optional)
    # Tracing runs the module's own code on placeholders, so anything may be raised.
    except Exception as error:
        raise NotResidualError(f"torch.fx cannot trace it: {error}") from error
    if sum(node.op == "placeholder" and bool(node.users) for node in graph.nodes) != 1:
        raise NotResidualError("it takes more or fewer than one input")
    return graph


def _trace_in_mode(block: nn.Module, *, training: bool) -> fx.Graph:
    modes = {module: module.training for module in block.modules()}
    block.train(training)
    try:
        return _trace(block)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _writes_in_place(block: nn.Module, node: fx.Node) -> bool:
    if _is_layer(node):
        return bool(getattr(block.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    is_operator = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i")
    return is_operator or name.endswith("_") or bool(node.kwargs.get("inplace", False))


def _last_addition(block: nn.Module, graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """Walk back from the output, past an activation or the like, to the addition."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    node = output
    while isinstance(node, fx.Node):
        if (
            not _is_layer(node)
            and node.target in _ADDITIONS
            and len(node.all_input_nodes) == 2
            and not node.kwargs
        ):
            return node, cast(fx.Node, output)
        weights = block.get_submodule(str(node.target)).parameters() if _is_layer(node) else ()
        if len(node.all_input_nodes) != 1 or any(weight.ndim > 1 for weight in weights):
            break
        node = node.all_input_nodes[0]
    raise NotResidualError("it does not end in an addition of two branches")


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_module"


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _layers(block: nn.Module, nodes: Iterable[fx.Node]) -> int:
    """Count the layers that hold parameters of their own, inside children too."""
    children = (block.get_submodule(str(node.target)) for node in nodes if _is_layer(node))
    layers = {layer for child in children for layer in child.modules()}
    return sum(any(True for _ in layer.parameters(recurse=False)) for layer in layers)


def _input_channels(block: nn.Module, x: fx.Node, graph: fx.Graph) -> int:
    """Read the channels of the input off the first layer that it meets."""
    for node in graph.nodes:
        if _is_layer(node) and x in _ancestors(node):
            for layer in block.get_submodule(str(node.target)).modules():
                weight = getattr(layer, "weight", None)
                if isinstance(weight, Tensor):
                    groups = getattr(layer, "groups", 1) if weight.ndim > 1 else 1
                    return int(weight.shape[min(weight.ndim - 1, 1)]) * int(groups)
    raise NotResidualError("no layer of it tells the channels of its input")


def _function(inputs: Sequence[fx.Node], outputs: Any, order: dict[fx.Node, int]) -> Part:
    """Compile the nodes from ``inputs`` to ``outputs`` into a function ``(block, *inputs)``."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    needed: set[fx.Node] = set()
    waiting: list[fx.Node] = []
    fx.node.map_arg(outputs, waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in copies and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in sorted(needed, key=order.__getitem__):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.node.map_arg(outputs, copies.__getitem__))
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<part of a residual block>", "exec"), scope)  # noqa: S102
    return cast(Part, scope["forward"])


class GatedBlock(nn.Module):
    """A residual block whose residual runs only for the images that its gate chooses.

    ``x -> tail(shortcut(x) + z(x) * residual(x))`` with ``z`` 0 or 1 for each image (Veit and
    Belongie, ECCV 2018, equation 2). Where no gradient is wanted, the residual is computed for the
    chosen images alone; otherwise for all, and multiplied by ``z``.

    The block's layers are taken over under their own names, so its state dict keeps its keys and
    gains those of ``gate``. Its hooks and plain attributes come along.

    Args:
        block: The residual block; its layers are shared, not copied.
        parts: What ``split`` made of it.
        gate: Decides on the block's input, ``(N, C, H, W)``.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> block = BasicBlock(8, 8).eval()
        >>> gated = GatedBlock(block, split(block), Gate(8)).eval()
        >>> x = torch.randn(2, 8, 5, 5)
        >>> gated.gate.policy = "open"
        >>> torch.equal(gated(x), block(x))
        True
        >>> gated.gate.policy = "closed"
        >>> torch.equal(gated(x), x.relu())
        True
    """

    gate: Gate

    def __init__(self, block: nn.Module, parts: Split, gate: Gate) -> None:
        super().__init__()
        for name, value in vars(block).items():
            self.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
        self.gate = gate
        self.parts = parts
        self.source = type(block)

    def ungated(self) -> nn.Module:
        """Return the block as it was before gating, sharing its layers with this one."""
        block = self.source.__new__(self.source)
        for name, value in vars(self).items():
            if name not in ("parts", "source"):
                block.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
        del block.gate
        return block

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on ``(N, C, H, W)`` for the images that the gate chooses."""
        decision: Decision = self.gate(x)
        for_residual, for_shortcut = self.parts.head(self, x)
        joined: Tensor = self.parts.shortcut(self, *for_shortcut)
        if decision.run == "all":
            joined = joined + self.parts.residual(self, *for_residual)
        elif decision.run == "scaled":
            residual = self.parts.residual(self, *for_residual)
            joined = joined + decision.scale.view(-1, *[1] * (residual.ndim - 1)) * residual
        elif decision.run == "chosen":
            joined = self._add_chosen(joined, for_residual, decision.scale.nonzero().squeeze(1))
        if self.parts.tail is None:
            return joined
        if joined is x:
            joined = x.clone()  # The tail may write in place, and this is the caller's tensor.
        return cast(Tensor, self.parts.tail(self, joined))

    def _add_chosen(self, shortcut: Tensor, inputs: Iterable[Tensor], chosen: Tensor) -> Tensor:
        if len(chosen) == 0:
            return shortcut
        if len(chosen) == len(shortcut):
            return shortcut + cast(Tensor, self.parts.residual(self, *inputs))
        taken = (value.index_select(0, chosen) for value in inputs)
        residual = self.parts.residual(self, *taken)
        return shortcut.index_add(0, chosen, residual.to(shortcut.dtype))
