"""Find the residual blocks of a network that can be gated exactly."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from aigtool.blocks import GatedBlock, Split, split
from aigtool.errors import UserError
from aigtool.graphs import NotResidualError, UnsplittableBlockError, UntraceableError
from aigtool.rehearsal import ResidualBlock, compare, rehearse, run, run_on_meta


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
    shapes but no numbers, shows what the block gets and whether its branches keep out of each
    other's memory. Last, its parts must compute on random features what the block computes.

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
        facts = rehearse(network, splits, size, (run_on_meta, run))
        facts |= _channels_last(network, splits, size, facts)
        facts |= _inexact(network, facts)
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
        again = rehearse(network, splits, larger, (run_on_meta,), trains=False)
    except UserError:  # A network for one size; those of the field have (N, C, H, W).
        return {}
    error = UnsplittableBlockError("its feature maps are not (N, C, H, W)")
    blocks = {name: fact for name, fact in facts.items() if isinstance(fact, ResidualBlock)}
    return {
        name: error
        for name, block in blocks.items()
        if isinstance(grown := again[name], ResidualBlock) and grown.channels != block.channels
    }


def _inexact(
    network: nn.Module, facts: Mapping[str, ResidualBlock | UnsplittableBlockError]
) -> dict[str, UnsplittableBlockError]:
    """Refuse blocks that their parts do not make up."""
    reasons: dict[str, UnsplittableBlockError] = {}
    for name, fact in facts.items():
        block = network.get_submodule(name)
        if isinstance(fact, ResidualBlock) and not isinstance(block, GatedBlock):
            try:
                compare(block, fact)
            except UnsplittableBlockError as error:
                reasons[name] = error
    return reasons
