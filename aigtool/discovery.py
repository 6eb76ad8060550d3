"""Find the residual blocks of a network, and rehearse each of them without data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aigtool.blocks import (
    GatedBlock,
    NotResidualError,
    Split,
    UnsplittableBlockError,
    UntraceableError,
    split,
)
from aigtool.errors import UserError
from aigtool.modes import in_mode


@dataclass(frozen=True)
class ResidualBlock:
    """What is known of a residual block that can be gated.

    Attributes:
        parts: The block, cut.
        channels: Channels of its input.
        reshapes: Whether its output has another shape than its input: a downsampling block, or
            one that changes the number of channels.
    """

    parts: Split
    channels: int
    reshapes: bool


class Discovery(NamedTuple):
    """The residual blocks of a network, in the order of execution.

    Attributes:
        blocks: By name, those that can be gated.
        refused: By name, why each of the others cannot be.
        untraced: By name, modules with convolutions but without a block found in them that
            ``torch.fx`` cannot trace, and why: they may be blocks or not.
    """

    blocks: dict[str, ResidualBlock]
    refused: dict[str, str]
    untraced: dict[str, str]


def find_blocks(
    network: nn.Module,
    *,
    input_size: tuple[int, int, int] | None = None,
    shortcuts: Mapping[str, str] | None = None,
) -> Discovery:
    """Find the residual blocks of a network.

    A block is the outermost module whose trace ends in an addition of two branches from its
    input. Nothing inside a block is a block: attention modules look like blocks too. Each block
    found is then rehearsed: a forward pass of the network on PyTorch's meta device, which has
    shapes but no numbers, shows how many channels the block gets and whether its branches keep
    out of each other's memory.

    Args:
        network: Any module that maps images ``(N, C, H, W)``; its gated blocks are blocks too.
        input_size: Channels, height and width of its input; by default what a timm network's
            ``pretrained_cfg`` says, else 224 x 224 with the channels of the first convolution.
        shortcuts: By name of a block both of whose branches have as many layers, the name of a
            layer on its shortcut.

    Returns:
        The blocks that can be gated, and those that cannot with the reason.

    Raises:
        UserError: The network cannot be run on an input of that size, or ``shortcuts`` names no
            block.

    Example:
        >>> import torchvision
        >>> blocks, refused, untraced = find_blocks(torchvision.models.resnet18())
        >>> list(blocks)[:3], blocks["layer2.0"].channels, blocks["layer2.0"].reshapes
        (['layer1.0', 'layer1.1', 'layer2.0'], 64, True)
    """
    shortcuts = shortcuts or {}
    found = find_splits(network, shortcuts)
    splits = {name: parts for name, parts in found.items() if isinstance(parts, Split)}
    if unknown := [name for name in shortcuts if name not in found]:
        raise UserError(
            f"shortcut of {unknown[0]!r}: no residual block has this name; expected one of "
            f"{', '.join(found) or 'none'}"
        )
    size = input_size or _input_size(network)
    facts: dict[str, ResidualBlock | UnsplittableBlockError] = {}
    if splits:
        facts = _rehearse(network, splits, size, (_run_on_meta, _run))
        facts |= _channels_last(network, splits, size, facts)
    return Discovery(
        blocks={name: fact for name, fact in facts.items() if isinstance(fact, ResidualBlock)},
        refused={
            name: str(reason)
            for name, reason in (found | facts).items()
            if isinstance(reason, UnsplittableBlockError)
        },
        untraced={
            name: str(reason)
            for name, reason in found.items()
            if isinstance(reason, UntraceableError)
        },
    )


def find_splits(
    network: nn.Module, shortcuts: Mapping[str, str] | None = None, prefix: str = ""
) -> dict[str, Split | NotResidualError]:
    """Find what looks like a residual block, without a rehearsal.

    Args:
        network: As for ``find_blocks``.
        shortcuts: As for ``find_blocks``.
        prefix: Of every name.

    Returns:
        By name, the block's parts, or why it cannot be gated, or why it cannot be told whether it
        is a block.
    """
    shortcuts = shortcuts or {}
    found: dict[str, Split | NotResidualError] = {}
    for child_name, child in network.named_children():
        name = prefix + child_name
        if isinstance(child, GatedBlock):
            found[name] = child.parts
            continue
        try:
            found[name] = split(child, shortcuts.get(name))
        except UnsplittableBlockError as error:
            found[name] = error
        except NotResidualError as error:
            inside = find_splits(child, shortcuts, f"{name}.")
            found |= inside
            if isinstance(error, UntraceableError) and not inside and _has_convolution(child):
                found[name] = error
    return found


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) for layer in module.modules())


def _input_size(network: nn.Module) -> tuple[int, int, int]:
    config = getattr(network, "pretrained_cfg", None)
    if isinstance(config, Mapping) and "input_size" in config:
        return tuple(config["input_size"])
    convolutions = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return (getattr(next(convolutions, None), "in_channels", 3), 224, 224)


def _channels_last(
    network: nn.Module,
    splits: Mapping[str, Split],
    input_size: tuple[int, int, int],
    facts: Mapping[str, ResidualBlock | UnsplittableBlockError],
) -> dict[str, ResidualBlock | UnsplittableBlockError]:
    """Refuse blocks of (N, H, W, C): what was taken for their channels grows with the image."""
    channels, *sides = input_size
    larger = (channels, *(side + 32 for side in sides))
    try:
        again = _rehearse(network, splits, larger, (_run_on_meta,))
    except UserError:  # A network for one size; those of the field have (N, C, H, W).
        return {}
    error = UnsplittableBlockError("its feature maps are not (N, C, H, W)")
    blocks = {name: fact for name, fact in facts.items() if isinstance(fact, ResidualBlock)}
    return {
        name: error
        for name, block in blocks.items()
        if isinstance(grown := again[name], ResidualBlock) and grown.channels != block.channels
    }


def _rehearse(
    network: nn.Module,
    splits: Mapping[str, Split],
    input_size: tuple[int, ...],
    runs: Sequence[Callable[[nn.Module, tuple[int, ...]], None]],
) -> dict[str, ResidualBlock | UnsplittableBlockError]:
    """Run the network; for each block, what it is or why it cannot be gated.

    The first of ``runs`` in which every block takes part counts.
    """
    facts: dict[str, ResidualBlock | UnsplittableBlockError] = {}

    def rehearse(
        name: str, block: nn.Module, run: Callable[..., Any], *inputs: Any, **options: Any
    ) -> Any:
        try:
            if name in facts:
                raise UnsplittableBlockError("it runs more than once in a forward pass")
            if len(inputs) != 1 or options:
                raise UnsplittableBlockError("it is called with more than one input")
            facts[name], output = _rehearse_block(block, splits[name], inputs[0])
        except UnsplittableBlockError as error:
            facts[name] = error
            return run(*inputs, **options)
        return output

    problem: Exception | None = None
    with ExitStack() as stack:
        for name in splits:
            block = network.get_submodule(name)
            understudy = partial(rehearse, name, block, block.forward)
            stack.enter_context(_replaced_forward(block, understudy))
        stack.enter_context(in_mode(network, training=False))
        stack.enter_context(torch.inference_mode(False))  # where versions are not counted
        stack.enter_context(torch.no_grad())
        for run in runs:
            facts.clear()
            try:
                run(network, input_size)
            # A network may raise anything on an input that does not suit it; it is told below,
            # where it kept a block from running.
            except Exception as error:
                problem = error
            if len(facts) == len(splits):
                break
    unseen = [name for name in splits if name not in facts]
    if unseen and problem is not None:
        size = "x".join(map(str, input_size))
        raise UserError(
            f"{type(network).__name__} cannot be run on an input of {size} ({problem}): "
            "give the input size it was made for"
        ) from problem
    idle = UnsplittableBlockError("it does not run in a forward pass")
    return facts | dict.fromkeys(unseen, idle)


def _run_on_meta(network: nn.Module, input_size: tuple[int, ...]) -> None:
    state = chain(network.named_parameters(), network.named_buffers())
    weights = {name: tensor.detach().to("meta") for name, tensor in state}
    dtype = next(network.parameters()).dtype
    with torch.device("meta"):
        functional_call(network, weights, torch.empty(2, *input_size, dtype=dtype))


def _run(network: nn.Module, input_size: tuple[int, ...]) -> None:
    """With numbers, on which a network's own way may depend."""
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
    joined = shortcut + residual
    output = joined if parts.tail is None else parts.tail(block, joined)
    return ResidualBlock(parts, x.shape[1], shortcut.shape != x.shape), output


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor's memory has been written to, through any view of it."""
    return [tensor._version for tensor in tensors]
