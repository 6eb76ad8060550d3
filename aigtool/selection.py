"""Which blocks of a network get a gate, and with which target."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from aigtool.errors import UserError
from aigtool.rehearsal import ResidualBlock

_T = 0.5
_PAPER: dict[str, tuple[float | None, ...]] = {
    "resnet50-eccv": (1, 1, 0.8, 1, *[None] * 3, 1, *[None] * 5, 1, 0.7, 1),
    "resnet101-eccv": (*[1] * 8, *[None] * 25),
}
"""The targets in the authors' notes, a block each; None stands for t."""


def ungated_blocks(patterns: Iterable[str], blocks: Mapping[str, ResidualBlock]) -> set[str]:
    """Name the blocks that patterns leave without a gate.

    Args:
        patterns: Each ``first`` or ``first:N``, ``last`` or ``last:N``, ``downsample`` (blocks
            whose output has another shape than their input), or a pattern for names such as
            ``layer1.*``; a module's name stands for the blocks in it.
        blocks: The residual blocks of a network, in the order of execution.

    Raises:
        UserError: A pattern matches no block, or counts more blocks than there are.

    Example:
        >>> import torchvision
        >>> from aigtool.discovery import find_blocks
        >>> blocks = find_blocks(torchvision.models.resnet18()).blocks
        >>> sorted(ungated_blocks(["first", "last:2"], blocks))
        ['layer1.0', 'layer4.0', 'layer4.1']
    """
    return {name for pattern in patterns for name in _matches(pattern, blocks)}


def _matches(pattern: str, blocks: Mapping[str, ResidualBlock]) -> list[str]:
    names = list(blocks)
    position, colon, count = pattern.partition(":")
    if position in ("first", "last"):
        number = 1 if not colon else int(count) if count.isdecimal() else 0
        if not 1 <= number <= len(names):
            raise UserError(
                f"ungated {pattern!r}: expected {position} or {position}:N with N from 1 to "
                f"{len(names)}, the number of blocks"
            )
        return names[:number] if position == "first" else names[-number:]
    if pattern == "downsample":
        matching = [name for name, block in blocks.items() if block.reshapes]
    else:
        wanted = (pattern, f"{pattern}.*")
        matching = [name for name in names if any(fnmatchcase(name, part) for part in wanted)]
    if not matching:
        raise UserError(
            f"ungated {pattern!r} matches no block: expected first:N, last:N, downsample, or a "
            f"pattern for names such as {names[0]} and {names[-1]}"
        )
    return matching


def parse_targets(text: str) -> list[float]:
    """Read targets: numbers with commas between, or a schedule of the paper.

    Args:
        text: Such as ``1,1,0.8,0.5``; or ``resnet50-eccv`` or ``resnet101-eccv``, the targets in
            the notes of Veit and Belongie (ECCV 2018), in which t is 0.5, or what follows a colon.

    Returns:
        A target for each block.

    Raises:
        UserError: It is neither.

    Example:
        >>> parse_targets("1, 0.8")
        [1.0, 0.8]
        >>> parse_targets("resnet50-eccv:0.6")[:6]
        [1.0, 1.0, 0.8, 1.0, 0.6, 0.6]
    """
    name, colon, rate = text.partition(":")
    if name in _PAPER:
        t = _target(rate) if colon else _T
        return [t if target is None else float(target) for target in _PAPER[name]]
    return [_target(part) for part in text.split(",")]


def _target(text: str) -> float:
    try:
        target = float(text)
    except ValueError as error:
        raise UserError(
            f"target {text.strip()!r}: expected rates with commas between, such as 1,0.8,0.5, or "
            f"one of {', '.join(_PAPER)}"
        ) from error
    return check_target(target)


def check_target(target: float) -> float:
    """Return a block's target.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise UserError(f"target {target:g}: expected a rate above 0 and at most 1")
    return target
