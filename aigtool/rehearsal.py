"""Try residual blocks: in their place in the network, and against what they are cut into."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aigtool.blocks import Split
from aigtool.errors import UserError
from aigtool.graphs import UnsplittableBlockError
from aigtool.modes import in_mode

_SIDE = 4
"""Height and width of the features that a block and its parts are compared on."""


@dataclass(frozen=True)
class ResidualBlock:
    """What is known of a residual block that can be gated.

    Attributes:
        parts: The block, cut.
        input_shape: Channels, height and width of its input.
        reshapes: Whether its output has another shape than its input: a downsampling block, or
            one that changes the number of channels.
    """

    parts: Split
    input_shape: tuple[int, int, int]
    reshapes: bool

    @property
    def channels(self) -> int:
        """Channels of its input."""
        return self.input_shape[0]


def rehearse(
    network: nn.Module,
    splits: Mapping[str, Split],
    input_size: tuple[int, ...],
    runs: Sequence[Callable[[nn.Module, tuple[int, ...]], None]],
    *,
    trains: bool = True,
) -> dict[str, ResidualBlock | UnsplittableBlockError]:
    """Run a network with the parts of its blocks in their place.

    Args:
        network: As it was; evaluated, without gates or with them.
        splits: By name of a block, its parts.
        input_size: Channels, height and width of the network's input.
        runs: Ways to run it, such as ``run_on_meta``; the first counts in which every block takes
            part.
        trains: Whether to try blocks in training mode too, where no numbers are computed.

    Returns:
        For each block, what it is or why it cannot be gated.

    Raises:
        UserError: The network cannot be run on an input of that size.
    """
    facts: dict[str, ResidualBlock | UnsplittableBlockError] = {}

    def take_part(
        name: str, block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any
    ) -> Any:
        try:
            if name in facts:
                raise UnsplittableBlockError("it runs more than once in a forward pass")
            if len(inputs) != 1 or options:
                raise UnsplittableBlockError("it is called with a keyword, or more than one input")
            fact, output = _rehearse_block(block, splits[name], inputs[0])
            if trains and output.is_meta:
                _rehearse_training(block, fact.parts, inputs[0])
            facts[name] = fact
        except UnsplittableBlockError as error:
            facts[name] = error
            return forward(*inputs, **options)
        return output

    problem: Exception | None = None
    with ExitStack() as stack:
        for name in splits:
            block = network.get_submodule(name)
            understudy = partial(take_part, name, block, block.forward)
            stack.enter_context(_replaced_forward(block, understudy))
        stack.enter_context(in_mode(network, training=False))
        stack.enter_context(torch.inference_mode(False))  # where versions are not counted
        stack.enter_context(torch.no_grad())
        for way in runs:
            facts.clear()
            try:
                way(network, input_size)
            # A network may raise anything on an input that does not suit it; it is told below,
            # where it kept a block from running.
            except Exception as error:
                problem = error
            if len(facts) == len(splits):
                break
    unseen = [name for name in splits if name not in facts]
    if unseen and problem is not None:
        raise unsuitable(network, input_size, problem) from problem
    idle = UnsplittableBlockError("it does not run in a forward pass")
    return facts | dict.fromkeys(unseen, idle)


def unsuitable(network: nn.Module, input_size: tuple[int, ...], problem: Exception) -> UserError:
    """Tell that a network cannot be run on an input of a size."""
    size = "x".join(map(str, input_size))
    return UserError(
        f"{type(network).__name__} cannot be run on an input of {size} ({problem}): give the input "
        "size it was made for"
    )


def run_on_meta(network: nn.Module, input_size: tuple[int, ...]) -> None:
    """Run a network on an input without numbers, whatever device its weights are on."""
    state = chain(network.named_parameters(), network.named_buffers())
    weights = {name: tensor.detach().to("meta") for name, tensor in state}
    dtype = next(network.parameters()).dtype
    with torch.device("meta"), _OfShapes():
        functional_call(network, weights, torch.empty(2, *input_size, dtype=dtype))


class _OfShapes(TorchFunctionMode):
    """Batch norms give what they are given: PyTorch's way to that is most of a run on meta."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return torch.empty_like(args[0]) if func is F.batch_norm else func(*args, **kwargs or {})


def run(network: nn.Module, input_size: tuple[int, ...]) -> None:
    """Run a network on zeros: its own way may depend on numbers."""
    network(next(network.parameters()).new_zeros(2, *input_size))


@contextmanager
def _replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")
    vars(block)["forward"] = forward
    try:
        yield
    finally:
        del vars(block)["forward"]
        if own is not None:
            vars(block)["forward"] = own


def _rehearse_block(block: nn.Module, parts: Split, x: object) -> tuple[ResidualBlock, Tensor]:
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise UnsplittableBlockError("its input is no batch of feature maps (N, C, H, W)")
    for_residual, for_shortcut = parts.head(block, x)
    starts = (*for_residual, *for_shortcut)
    if not all(isinstance(v, Tensor) and v.shape[:1] == x.shape[:1] for v in starts):
        raise UnsplittableBlockError(
            "its branches start from something other than a tensor with an entry an image"
        )
    shortcut, residual = _run_apart(block, parts, x)
    joined = shortcut + residual
    output = joined if parts.tail is None else parts.tail(block, joined)
    _, channels, height, width = x.shape
    shape = (channels, height, width)
    return ResidualBlock(parts, shape, shortcut.shape != x.shape), output


def _rehearse_training(block: nn.Module, parts: Split, x: Tensor) -> None:
    with in_mode(block, training=True):
        try:
            _run_apart(block, parts, x)
        except UnsplittableBlockError:
            raise
        except ValueError:  # A norm that cannot train here, such as SyncBatchNorm.
            return


def _run_apart(block: nn.Module, parts: Split, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return shortcut and residual; neither may write into what the other reads."""
    for_residual, for_shortcut = parts.head(block, x)
    before = _versions(for_residual)
    shortcut: Tensor = parts.shortcut(block, *for_shortcut)
    if _versions(for_residual) != before:
        raise UnsplittableBlockError("its shortcut writes in place into what its residual reads")
    read = (*for_shortcut, shortcut)
    before = _versions(read)
    residual: Tensor = parts.residual(block, *for_residual)
    if _versions(read) != before:
        raise UnsplittableBlockError("its residual writes in place into what its shortcut reads")
    if residual.shape != shortcut.shape:
        raise UnsplittableBlockError(
            f"its branches have the shapes {tuple(residual.shape)} and {tuple(shortcut.shape)}"
        )
    return shortcut, residual


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor's memory has been written to, through any view of it."""
    return [tensor._version for tensor in tensors]


def compare(block: nn.Module, found: ResidualBlock) -> None:
    """Compare a block with its parts, on random features and in evaluation mode.

    Weights that are all zero, as gains often are before training, count as ones, lest they hide a
    difference. A block without numbers, on the meta device, is not compared.

    Raises:
        UnsplittableBlockError: The parts compute something else, change the input otherwise, or
            an image's residual depends on the images beside it.

    Example:
        >>> from aigtool.blocks import split
        >>> from torchvision.models.resnet import BasicBlock
        >>> block = BasicBlock(8, 8)
        >>> compare(block, ResidualBlock(split(block), (8, 56, 56), reshapes=False))
    """
    weight = next(block.parameters())
    if weight.is_meta:
        return
    channels, *sides = found.input_shape
    state = chain(block.named_parameters(), block.named_buffers())
    lively = {
        name: torch.ones_like(tensor)
        for name, tensor in state
        if tensor.is_floating_point() and not tensor.any()
    }
    devices = [weight.device] if weight.is_cuda else []
    understudy = partial(_compare, block, found.parts, block.forward)
    with (
        torch.random.fork_rng(devices),
        _replaced_forward(block, understudy),
        in_mode(block, training=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        for height, width in ((min(_SIDE, side) for side in sides), sides):
            features = weight.new_empty(3, channels, height, width).normal_()
            try:
                functional_call(block, lively, features)
            except UnsplittableBlockError:
                raise
            # A block made for one size may raise anything on another.
            except Exception as error:
                problem = error
            else:
                return
    raise UnsplittableBlockError(f"it cannot be run on random features: {problem}") from problem


def _compare(
    block: nn.Module, parts: Split, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    inputs = (x.clone(), x.clone())
    torch.manual_seed(0)
    expected = forward(inputs[0])
    torch.manual_seed(0)
    for_residual, for_shortcut = parts.head(block, inputs[1])
    of_some = [value[[0, 2]] for value in for_residual]
    shortcut = parts.shortcut(block, *for_shortcut)
    residual = parts.residual(block, *for_residual)
    alone = parts.residual(block, *of_some)
    if not _close(alone, residual[[0, 2]]):
        raise UnsplittableBlockError(
            "an image's residual depends on the images beside it, or on chance"
        )
    output = shortcut + residual
    if parts.tail is not None:
        output = parts.tail(block, output)
    if not _close(output, expected):
        raise UnsplittableBlockError(
            "cut in two it computes something else; perhaps it writes into a view, or draws random "
            "numbers"
        )
    if not _close(*inputs):
        raise UnsplittableBlockError("it writes in place into its input")
    return expected


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree but for rounding, which depends on the batch."""
    scale = expected.abs().max()
    bound = torch.finfo(expected.dtype).eps ** 0.5 * scale.nan_to_num(1.0).item()
    return torch.allclose(actual, expected, rtol=0, atol=bound, equal_nan=True)
