"""Who reads which tensor in a forward pass, found by running the network without numbers."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from aigtool.blocks import GatedBlock
from aigtool.conversion import gate_policy
from aigtool.modes import in_mode
from aigtool.rehearsal import run, run_on_meta, unsuitable

_ABOUT = frozenset(
    {
        *("__get__", "dim", "size", "numel", "is_floating_point", "is_contiguous"),
        "untyped_storage",
    }
)
"""Functions that ask about a tensor, not for its numbers."""
_MAY_COPY = frozenset(
    {
        *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16"),
        *("reshape", "reshape_as", "flatten", "ravel", "cpu", "cuda"),
    }
)
"""Functions that return what they are given, or a copy, as layout, type and device are."""
_NORMS = (nn.BatchNorm2d, BatchNormAct2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Reading:
    """What a forward pass with all blocks open shows.

    Attributes:
        norms: By name of a convolution, the batch norm that alone reads what it computes.
        overwritable: The gated blocks whose input nobody reads after them.
        following: By name of a gated block, the one whose output it is given as it was returned.
    """

    norms: dict[str, str]
    overwritable: frozenset[str]
    following: dict[str, str]


def read(network: nn.Module, input_size: tuple[int, int, int]) -> Reading:
    """Run a network, on the meta device if it can be, and note who reads what.

    Args:
        network: It is left as it was.
        input_size: Channels, height and width of its input.

    Raises:
        UserError: It cannot be run on an input of that size.

    Example:
        >>> import torchvision
        >>> from aigtool.conversion import convert
        >>> found = read(convert(torchvision.models.resnet18()), (3, 64, 64))
        >>> found.norms["layer2.0.downsample.0"], "layer1.0" in found.overwritable
        ('layer2.0.downsample.1', True)
        >>> "layer1.0" in found.following, found.following["layer1.1"]
        (False, 'layer1.0')
    """
    with in_mode(network, training=False), gate_policy(network, "open"), torch.no_grad():
        try:
            with (notes := _Notes()).taken(network):
                run_on_meta(network, input_size)
        # What depends on numbers may raise anything where there are none.
        except Exception:
            try:
                with (notes := _Notes()).taken(network):
                    run(network, input_size)
            except Exception as error:
                raise unsuitable(network, input_size, error) from error
    return Reading(dict(notes.norms()), frozenset(notes.overwritable()), dict(notes.following()))


class _Notes(TorchFunctionMode):
    """Counts the calls that read each tensor, and when each memory is read last."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []  # lest another object gets the identity of one that is gone
        self.calls: Counter[str] = Counter()
        self.reads: Counter[int] = Counter()
        self.now = 0
        self.origin: dict[int, int] = {}
        self.last_read: dict[int, int] = {}
        self.made: dict[int, str] = {}
        self.normed: dict[int, str] = {}
        self.ended: dict[str, tuple[int, int]] = {}
        self.returned: dict[int, tuple[str, int]] = {}
        self.follows: dict[str, str] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note what is read, and call."""
        name = getattr(func, "__name__", "")
        if name not in _ABOUT:
            self._note(args, kwargs)
        result = func(*args, **(kwargs or {}))
        if name in _MAY_COPY and isinstance(result, Tensor):
            self._note_copied(_first_tensor(args, kwargs), result)
        return result

    def _note(self, *read: Any) -> None:
        self.now += 1
        for tensor in tree_leaves(read):
            if isinstance(tensor, Tensor):
                self.kept.append(tensor)
                self.reads[id(tensor)] += 1
                self.last_read[self._memory(tensor)] = self.now

    def _note_copied(self, tensor: Tensor, result: Tensor) -> None:
        """Take a copy for the tensor itself, which it may be in another layout."""
        memory = self._memory(tensor)
        if self._memory(result) != memory:
            self.kept.append(result)
            self.origin[_storage(result)] = memory

    def _memory(self, tensor: Tensor) -> int:
        """Return what tells the memory that a tensor lies in, or might."""
        storage = _storage(tensor)
        return self.origin.get(storage, storage)

    @contextmanager
    def taken(self, network: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in network.named_modules():
                for hook in self._hooks(name, module):
                    stack.callback(module.register_forward_hook(hook).remove)
                if isinstance(module, GatedBlock):
                    entered = partial(self._note_entered, name)
                    stack.callback(module.register_forward_pre_hook(entered).remove)
            stack.callback(network.register_forward_hook(self._note_ends).remove)
            stack.enter_context(self)
            yield

    def _note_ends(self, _network: nn.Module, inputs: Any, output: Any) -> None:
        self._note(inputs, output)

    def _note_entered(self, name: str, _block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        before, returned = self.returned.get(id(x), ("", -1))
        if self.last_read.get(self._memory(x), 0) <= returned:
            self.follows[name] = before

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Callable[..., None]]:
        def count(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            self.calls[name] += 1

        def made(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.kept.append(output)
            self.made[id(output)] = name

        def normed(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            self.normed[id(inputs[0])] = name

        def passed(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.kept += (*inputs, output)
            self.ended[name] = (self._memory(inputs[0]), self.now)
            self.returned[id(output)] = (name, self.now)

        yield count
        if type(module) is nn.Conv2d:
            yield made
        if type(module) in _NORMS and module.running_var is not None:
            yield normed
        if isinstance(module, GatedBlock):
            yield passed

    def norms(self) -> Iterator[tuple[str, str]]:
        for tensor, convolution in self.made.items():
            norm = self.normed.get(tensor)
            if norm and self.reads[tensor] == self.calls[convolution] == self.calls[norm] == 1:
                yield convolution, norm

    def overwritable(self) -> Iterator[str]:
        for name, (memory, end) in self.ended.items():
            if self.calls[name] == 1 and self.last_read[memory] <= end:
                yield name

    def following(self) -> Iterator[tuple[str, str]]:
        for name, before in self.follows.items():
            if self.calls[name] == 1:
                yield name, before


def _first_tensor(*values: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
