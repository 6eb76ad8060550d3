"""The splitter, which cuts any residual block at its join, and the gated block made from it."""

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from aigtool.gates import Decision, Gate
from aigtool.gpu import aside, is_unobserved, rejoin, suits_kernels
from aigtool.graphs import (
    AUGMENTED,
    NotResidualError,
    UnsplittableBlockError,
    capture,
    remove_constants,
)
from aigtool.modes import in_mode
from aigtool.picking import add_executed, add_scaled, add_to_images, fork_images, take_images

_ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"})
_ABOUT: frozenset[Any] = frozenset({"shape", "dtype", "device", "ndim", "size", "dim", "numel"})
"""Attributes and methods that ask about a tensor, not for its numbers."""
_TUPLES: frozenset[Any] = frozenset({torch.chunk, torch.split, torch.unbind})
_TUPLE_METHODS: frozenset[Any] = frozenset({"chunk", "split", "unbind"})

_NO_ADDITION = "it does not end in an addition of two branches"
_OWN = ("gate", "parts", "source")
"""Attributes that a ``GatedBlock`` adds to those of its block."""

_WORTH_PARTING = 1 / 16
"""Of a minibatch's images, from how many skipped ones on to part them costs less than it saves."""

Part = Callable[..., Any]
"""A piece of a block as a function of the module that owns the layers, then its inputs."""


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
        activation: Where the tail is one layer or one ReLU of ``torch`` and nothing else, the
            layer's name, or the empty string.
        named: The layer that the caller named for the shortcut to be told by, if any.
    """

    head: Part
    residual: Part
    shortcut: Part
    tail: Part | None
    activation: str | None = None
    named: str | None = None


def split(block: nn.Module, shortcut: str | None = None) -> Split:
    """Cut a residual block into head, residual, shortcut and tail.

    The block is traced with ``torch.fx``, each direct child kept whole. Of the two addends of the
    last addition, the shortcut is the one with fewer parametrised layers behind it.

    Args:
        block: A module of one tensor input, ``(N, C, H, W)``.
        shortcut: Name of a layer on the branch to take for the shortcut, where both have as many.

    Returns:
        The four parts. They look layers up by name in the module given to them, so they serve the
        block itself, a copy of it, or a ``GatedBlock`` that has taken over its layers.

    Raises:
        NotResidualError: The module cannot be traced, or does not end in an addition of two
            branches from its input, at least one of them with layers.
        UnsplittableBlockError: It does, but both branches have as many parametrised layers and
            ``shortcut`` names none of one, a branch needs a value inside the other, its trace
            depends on the training mode, or it has an attribute ``gate``, ``parts`` or ``source``.

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
    try:
        return _split(block, shortcut)
    except NotResidualError:
        remove_constants(block)
        raise


def _split(block: nn.Module, shortcut: str | None) -> Split:
    if _ends_in_a_layer(block):
        raise NotResidualError(_NO_ADDITION)
    graph = capture(block)
    as_traced = str(graph)
    written = _thread_writes(block, graph)
    order = {node: position for position, node in enumerate(graph.nodes)}
    x = next(node for node in order if node.op == "placeholder" and node.users)
    addition, output = _last_addition(block, graph)
    data = _computed_from(x, graph)
    behind = {addend: _behind(addend, data) for addend in addition.all_input_nodes}
    if not all(x in nodes for nodes in behind.values()):
        raise NotResidualError("its last addition has an addend that does not reach the input")
    shared = set.intersection(*behind.values())
    apart, along = _by_layers(
        block, {addend: nodes - shared for addend, nodes in behind.items()}, shortcut
    )
    if taken := [name for name in _OWN if hasattr(block, name)]:
        raise UnsplittableBlockError(f"it already has an attribute called {taken[0]}")
    with in_mode(block, training=not block.training):
        if as_traced != str(capture(block)):
            raise UnsplittableBlockError(
                "it reads self.training, which a trace fixes; let a module such as nn.Dropout do so"
            )
    if any(_is_layer(node) or node in written.values() for node in order if not node.users):
        raise UnsplittableBlockError("it calls a layer, or writes in place, for its effect alone")
    inputs = {
        addend: sorted(_starts(addend, shared, data - behind[addend]), key=order.__getitem__)
        for addend in behind
    }
    if any(before in starts for before in written for starts in inputs.values()):
        raise UnsplittableBlockError(
            "a branch reads a value that is then written to in place; x = x + ... makes a new one"
        )
    ends = {
        "head": ([x], (tuple(inputs[apart]), tuple(inputs[along]))),
        "residual": (inputs[apart], apart),
        "shortcut": (inputs[along], along),
        "tail": ([addition], output),
    }
    nodes = {part: sorted(_between(*of), key=order.__getitem__) for part, of in ends.items()}
    layers = [node for part in nodes.values() for node in part if _is_layer(node)]
    if len({*layers}) < len(layers):
        raise UnsplittableBlockError("a layer that does not read its input serves both branches")
    parts = {part: _function(*of, nodes[part]) for part, of in ends.items()}
    return Split(
        head=parts["head"],
        residual=parts["residual"],
        shortcut=parts["shortcut"],
        tail=None if output is addition else parts["tail"],
        activation=_activation(*nodes["tail"]) if len(nodes["tail"]) == 1 else None,
        named=shortcut,
    )


def _ends_in_a_layer(module: nn.Module) -> bool:
    """Whether it is plain without a trace, which takes long, that nothing is added at its end."""
    kind = type(module)
    is_layer = kind.__module__.startswith("torch.nn.") and not [*module.children()]
    is_chain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
    return is_layer or is_chain


def _thread_writes(block: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Let all that follows a write in place read its result, as it reads the same memory.

    Returns:
        What was written to, and by which node last.
    """
    written: dict[fx.Node, fx.Node] = {}
    earlier: set[fx.Node] = set()
    for node in graph.nodes:
        earlier.add(node)
        if _writes_in_place(block, node) and isinstance(target := node.args[0], fx.Node):
            target.replace_all_uses_with(node, lambda user: user not in earlier)
            written[target] = node
    return written


def _writes_in_place(block: nn.Module, node: fx.Node) -> bool:
    if _is_layer(node):
        layer = block.get_submodule(str(node.target))
        is_leaf = not any(True for _ in layer.children())
        return is_leaf and getattr(layer, "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = str(getattr(node.target, "__name__", ""))
    is_operator = getattr(node.target, "__module__", "") == "_operator" and name in AUGMENTED
    return is_operator or name.endswith("_") or node.kwargs.get("inplace") is True


def _last_addition(block: nn.Module, graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """Walk back from the output, past an activation or the like, to the addition."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    node = output
    while isinstance(node, fx.Node):
        if (
            not _is_layer(node)
            and node.target in _ADDITIONS
            and len(node.all_input_nodes) == 2
            and node.kwargs.keys() <= {"input", "other"}
        ):
            return node, cast(fx.Node, output)
        weights = block.get_submodule(str(node.target)).parameters() if _is_layer(node) else ()
        if len(node.all_input_nodes) != 1 or any(weight.ndim > 1 for weight in weights):
            break
        node = node.all_input_nodes[0]
    raise NotResidualError(_NO_ADDITION)


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_module"


def _activation(node: fx.Node) -> str | None:
    if _is_layer(node):
        return str(node.target)
    return "" if node.target in _RELU else None


def _computed_from(x: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The nodes computed from the numbers of ``x``: neither constants nor facts about its shape."""
    data = {x}
    for node in graph.nodes:
        asked = node.args[1] if node.target is getattr else node.target
        if asked not in _ABOUT and not data.isdisjoint(node.all_input_nodes):
            data.add(node)
    return data


def _behind(node: fx.Node, data: set[fx.Node]) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        new = (data & {*waiting.pop().all_input_nodes}) - found
        found |= new
        waiting += new
    return found


def _by_layers(
    block: nn.Module, branches: dict[fx.Node, set[fx.Node]], shortcut: str | None
) -> tuple[fx.Node, fx.Node]:
    """Tell which addend is the residual and which the shortcut, in this order."""
    layers = {addend: _count_layers(block, nodes) for addend, nodes in branches.items()}
    first, second = sorted(layers, key=layers.__getitem__, reverse=True)
    if layers[first] == 0:
        raise NotResidualError("neither branch of its last addition has a parametrised layer")
    if shortcut is not None:
        holders = [
            addend
            for addend, nodes in branches.items()
            if any(_is_layer(n) and f"{n.target}.".startswith(f"{shortcut}.") for n in nodes)
        ]
        if len(holders) != 1:
            raise UnsplittableBlockError(f"its layer {shortcut!r} is on {len(holders)} branches")
        return (second, first) if holders[0] is first else (first, second)
    if layers[first] == layers[second]:
        raise UnsplittableBlockError(
            f"its two branches have {layers[first]} parametrised layers each, so neither is "
            "plainly the shortcut; name a layer of it"
        )
    return first, second


def _count_layers(block: nn.Module, nodes: Iterable[fx.Node]) -> int:
    """Count the layers that hold parameters, inside children too, and the block's own weights."""
    nodes = [*nodes]
    children = (block.get_submodule(str(node.target)) for node in nodes if _is_layer(node))
    layers = {layer for child in children for layer in child.modules()}
    read = {node for user in nodes for node in user.all_input_nodes if node.op == "get_attr"}
    values = (operator.attrgetter(str(node.target))(block) for node in read)
    weights = [v for v in values if isinstance(v, nn.Parameter) and sum(n > 1 for n in v.shape) > 1]
    return len(weights) + sum(
        any(True for _ in layer.parameters(recurse=False)) for layer in layers
    )


def _starts(addend: fx.Node, shared: set[fx.Node], foreign: set[fx.Node]) -> set[fx.Node]:
    """The shared tensors that a branch starts from; sizes and tuples of views it works out anew."""
    starts: set[fx.Node] = set()
    seen, waiting = {addend}, [addend]
    while waiting:
        node = waiting.pop()
        if node in foreign:
            raise UnsplittableBlockError("one of its branches needs a value inside the other")
        names = _TUPLE_METHODS if node.op == "call_method" else _TUPLES
        if node in shared and node.target not in names:
            starts.add(node)
        else:
            waiting += {*node.all_input_nodes} - seen
            seen |= {*node.all_input_nodes}
    return starts


def _between(inputs: Sequence[fx.Node], outputs: Any) -> set[fx.Node]:
    """The nodes that lead from ``inputs`` to ``outputs``, these included."""
    needed: set[fx.Node] = set()
    waiting: list[fx.Node] = []
    fx.node.map_arg(outputs, waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in inputs and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _function(inputs: Sequence[fx.Node], outputs: Any, nodes: Sequence[fx.Node]) -> Part:
    """Compile the nodes from ``inputs`` to ``outputs`` into a function ``(block, *inputs)``."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.node.map_arg(outputs, copies.__getitem__))
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<part of a residual block>", "exec"), scope)  # noqa: S102
    return cast(Part, scope["forward"])


def _mixes_images(layers: Iterable[nn.Module]) -> bool:
    """Whether what layers make of an image depends on the others: by batch statistics."""
    norms = [m for layer in layers for m in layer.modules() if "running_var" in m._buffers]
    return any(norm.training or norm.running_var is None for norm in norms)


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
            if name not in _OWN:
                block.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
        del block.gate
        remove_constants(block)
        return block

    def ends_rectified(self) -> bool:
        """Whether what follows its addition is a ReLU and nothing else."""
        name = self.parts.activation
        return name is not None and (not name or type(self.get_submodule(name)) is nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on ``(N, C, H, W)`` for the images that the gate chooses."""
        decision: Decision = aside(x.device, self.gate, x)
        if decision.run != "scaled":
            rejoin(x.device)
        return self._run(x, decision)

    def _run(self, x: Tensor, decision: Decision) -> Tensor:
        for_residual, for_shortcut = self.parts.head(self, x)
        shortcut: Tensor = self.parts.shortcut(self, *for_shortcut)
        rectified = decision.run == "scaled" and self._rectifies_at_once(shortcut)
        joined = self._join(shortcut, for_residual, decision, rectified)
        if self.parts.tail is None or rectified:
            return joined
        if joined is shortcut:
            joined = shortcut.clone()  # It may be the caller's tensor, and the tail write in place.
        return cast(Tensor, self.parts.tail(self, joined))

    def _join(
        self, shortcut: Tensor, inputs: Sequence[Tensor], decision: Decision, rectified: bool
    ) -> Tensor:
        if decision.run == "none":
            return shortcut
        if decision.run == "chosen":
            chosen = decision.scale.nonzero().squeeze(1)
            if len(chosen) == 0:
                return shortcut
            if len(chosen) < len(shortcut):
                taken = (take_images(value, chosen) for value in inputs)
                residual = self.parts.residual(self, *taken)
                return add_to_images(shortcut, chosen, residual.to(shortcut.dtype))
        if decision.run == "scaled" and self._can_part(decision.scale):
            return self._join_parted(shortcut, inputs, decision.scale)
        residual = self.parts.residual(self, *inputs)
        if decision.run == "scaled":
            rejoin(shortcut.device)
            return add_scaled(shortcut, residual, decision.scale, rectified=rectified)
        return cast(Tensor, shortcut + residual)

    def _rectifies_at_once(self, shortcut: Tensor) -> bool:
        """Whether the ReLU after the addition is computed along with it."""
        if not (suits_kernels(shortcut) and self.ends_rectified()):
            return False
        name = self.parts.activation
        return is_unobserved(*[self.get_submodule(name)] if name else [])

    def _can_part(self, scale: Tensor) -> bool:
        """Whether the images that are skipped can be told apart from the others, and it pays.

        On a GPU to ask which they are is to wait for it.
        """
        if scale.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling() or _mixes_images(self._layers()):
            return False
        skipped = scale == 0
        is_hard = bool((skipped | (scale == 1)).all())
        return is_hard and bool(skipped.sum() >= _WORTH_PARTING * len(scale))

    def _join_parted(self, shortcut: Tensor, inputs: Sequence[Tensor], scale: Tensor) -> Tensor:
        """Join with a graph of the executed images' residuals alone.

        The gradient of a factor of 0 wants its image's residual, but none flows back through it.
        """
        executed, skipped = (where.nonzero().squeeze(1) for where in (scale == 1, scale == 0))
        with torch.no_grad():
            left_out = self.parts.residual(self, *(take_images(v, skipped) for v in inputs))
        if len(executed) == 0:  # Weights have a gradient of zero, and not none: momentum goes on.
            weights = [w for name, w in self.named_parameters() if not name.startswith("gate.")]
            residual = left_out[:0] + sum(weight.flatten()[:1].sum() for weight in weights)
        elif len(inputs) == 1 and inputs[0] is shortcut:
            shortcut, taken = fork_images(shortcut, executed)
            residual = self.parts.residual(self, taken)
        else:
            residual = self.parts.residual(self, *(take_images(v, executed) for v in inputs))
        return add_executed(shortcut, (executed, residual), (skipped, left_out), scale)

    def _layers(self) -> list[nn.Module]:
        """The modules of the block itself, which its gate is none of."""
        return [child for name, child in self.named_children() if name not in _OWN]

    def __deepcopy__(self, memo: dict[int, Any]) -> "GatedBlock":
        """A copy has the same parts, which look layers up by name, and is not cut anew."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """The parts, which cannot be pickled, are left out."""
        return {**vars(self), "parts": self.parts.named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The block is cut anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.parts = split(self.ungated(), state["parts"])
