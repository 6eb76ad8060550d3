"""The graph of a residual block, writes in place told as what they are."""

import math
import operator
import random
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import fx, nn

AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod")
"""The operators that write in place."""


class NotResidualError(ValueError):
    """A module is no residual block that can be cut; the message says what was found."""


class UntraceableError(NotResidualError):
    """Whether a module is a residual block cannot be told, since ``torch.fx`` cannot trace it."""


class UnsplittableBlockError(NotResidualError):
    """A residual block that cannot be gated as it is; the message says why."""


class _BlockTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _BlockProxy(node, self)


class _BlockProxy(fx.Proxy):
    """Records ``x += 1`` as what it is; ``fx`` alone takes it for ``x = x + 1``."""


def _augmented(name: str) -> Callable[[_BlockProxy, Any], fx.Proxy]:
    def record(self: _BlockProxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


for _name in AUGMENTED:
    setattr(_BlockProxy, f"__{_name}__", _augmented(_name))


def capture(block: nn.Module) -> fx.Graph:
    """Trace a module of one input, each direct child kept whole.

    Args:
        block: A tensor that its own code makes becomes an attribute of it, for the graph to read.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace it, or a trace would fix what it draws.
        NotResidualError: It takes more or fewer than one input.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> print(capture(BasicBlock(8, 8)).find_nodes(op="call_function", target=operator.iadd))
        [iadd]
    """
    remove_constants(block)
    drawn = (torch.get_rng_state(), random.getstate())
    # Wrapping the functions of math takes a third of the time, and few blocks need it.
    for wrapped in ((), (math,)):
        try:
            parameters = signature(block.forward).parameters.values()
            optional = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
            graph = _BlockTracer(autowrap_modules=wrapped).trace(block, concrete_args=optional)
            break
        # Tracing runs the module's own code on placeholders, so anything may be raised.
        except Exception as error:
            problem = error
    else:
        raise UntraceableError(f"torch.fx cannot trace it: {problem}") from problem
    if not (torch.equal(drawn[0], torch.get_rng_state()) and drawn[1] == random.getstate()):
        raise UntraceableError("it draws random numbers without a module, which a trace would fix")
    if sum(node.op == "placeholder" and bool(node.users) for node in graph.nodes) != 1:
        raise NotResidualError("it takes more or fewer than one input")
    return graph


def remove_constants(block: nn.Module) -> None:
    """Remove the tensors that tracing has put into a module."""
    for name in [name for name in vars(block) if name.startswith("_tensor_constant")]:
        delattr(block, name)
