"""A gated block that computes what its gate chose, and writes it where its input was."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from aigtool.blocks import GatedBlock
from aigtool.gates import Decision
from aigtool.inference.folding import FEW, FoldedGate
from aigtool.inference.launching import Desk
from aigtool.picking import put_images, take_images

NEIGHBOURS = 4
"""Most images that are computed together where they lie."""
LARGE = 2**18
"""Bytes of an image's features from which it is computed where it lies, if they are wide."""
HEAVY = 2**17
"""Bytes of an image's features from which they are gathered to be convolved, but not put back."""
WIDE = 512
"""Positions of features from which convolutions are as fast on few images as on many."""
PARTS = 16
"""Into how many parts a batch is cut at most where a block is recorded for any number of them."""
CACHED = 2**21
"""Bytes of wide features to compute together, lest they leave the cache between two layers."""


class SkippingBlock(GatedBlock):
    """A gated block of a network that is served: it copies as little as it can.

    Large features are computed in runs of neighbours, as views; smaller ones are gathered, in
    chunks that the cache holds where convolutions are as fast on few images. Where nobody else
    reads the block's input, results are written over it, and an image that skips a block is left as
    it is.

    Args:
        block: The block, its gate folded; its layers are shared.
        overwrites: Whether nobody reads the block's input after it.
        rectified: Whether its input went through a ReLU.
        is_followed: Whether a block, and nobody else, reads what it returns.
    """

    gate: FoldedGate

    def __init__(
        self, block: GatedBlock, *, overwrites: bool, rectified: bool, is_followed: bool = False
    ) -> None:
        super().__init__(block, block.parts, block.gate)
        self.source = block.source
        self.overwrites = overwrites
        self.rectified = rectified
        self.is_followed = is_followed
        self.rectifies = self.ends_rectified()
        self._owner = object()
        self._hooks = (-1, False)

    def settles(self, shortcut: Tensor, x: Tensor) -> bool:
        """Whether an image that skips the block leaves it as it was: its tail changes nothing."""
        # What a ReLU has left as it is, it leaves again.
        tail = self.parts.tail is not None and not (self.rectified and self.rectifies)
        return shortcut is x and not tail

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on ``(N, C, H, W)`` for the images that the gate chooses."""
        gate = self.gate
        desk = gate.launches.desk(self._owner, x)
        if desk is not None and not self._is_watched_within():
            return self._launch(desk, x)
        is_watched = gate._forward_hooks or gate._forward_pre_hooks
        if len(x) > FEW or is_watched or gate.policy != "argmax" or torch.is_grad_enabled():
            return super().forward(x)
        return self._skip(x, gate.few(x)[0])

    def _run(self, x: Tensor, decision: Decision) -> Tensor:
        if decision.run == "scaled" or torch.is_grad_enabled():
            return super()._run(x, decision)
        return self._skip(x, [scale != 0 for scale in decision.scale.tolist()])

    def _skip(self, x: Tensor, executed: Sequence[bool]) -> Tensor:
        for_residual, for_shortcut = self.parts.head(self, x)
        joined: Tensor = self.parts.shortcut(self, *for_shortcut)
        if 0 < len(executed) <= NEIGHBOURS and all(executed):
            # What was computed last is in the cache: it is written over, and the input let go.
            residual: Tensor = self.parts.residual(self, *for_residual)
            if self.rectifies:
                return _add_rectified(residual, joined)
            return self._finished(residual.add_(joined))
        settled = self.settles(joined, x)
        if not self.overwrites and _share_memory(joined, x):
            joined = joined.clone()
        size, positions = x.shape[1:].numel() * x.element_size(), x.shape[2:].numel()
        add = _add_rectified if settled and self.rectifies else Tensor.add_
        are_put_back = size < HEAVY or x.device.type != "cpu"
        for images in groups(executed, size, positions, x.device):
            if isinstance(images, slice) or are_put_back:
                rows = _picked(joined, images)
                inputs = (rows if one is joined else _picked(one, images) for one in for_residual)
                add(rows, self.parts.residual(self, *inputs))
                if not isinstance(images, slice):
                    put_images(joined, images, rows)
            else:
                added = self.parts.residual(
                    self, *(take_images(one, images) for one in for_residual)
                )
                for lying, gathered in neighbours(images.tolist()):
                    add(joined[lying], added[gathered])
        return joined if settled else self._finished(joined)

    def _is_watched_within(self) -> bool:
        """Whether a hook is on one of its layers; looked up anew if one was made anywhere."""
        made, found = self._hooks
        if found or made != RemovableHandle.next_id:
            layers = (layer for layer in self.modules() if layer not in (self, self.gate))
            found = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
            self._hooks = RemovableHandle.next_id, found
        return found

    def _launch(self, desk: Desk, x: Tensor) -> Tensor:
        """Run the block by way of what was recorded for a GPU.

        The host is asked once, for how many images were chosen; which these are, the GPU knows.
        """
        x = desk.settled((self._owner, 0), x)
        decision: Decision = self.gate(x)
        if decision.run == "scaled":
            return self._run(x, decision)
        chosen = len(x) * (decision.run == "all")
        if decision.run == "chosen":
            chosen = sum(scale != 0 for scale in decision.scale.tolist())
        counts = launched_counts(len(x))
        count = next(count for count in (0, *counts) if count >= chosen)
        (output,) = desk.run(self._owner, self._compute, count, counts, x, decision.scale)
        return output if self.is_followed else output.clone()

    def _compute(self, count: int, x: Tensor, scale: Tensor) -> tuple[Tensor]:
        """Run the block on ``count`` images, the chosen ones first; to others nothing is added.

        It may write over its input: that is a place, and what others read was copied there.
        """
        for_residual, for_shortcut = self.parts.head(self, x)
        joined: Tensor = self.parts.shortcut(self, *for_shortcut)
        settled = self.settles(joined, x)
        if count:
            rows, inputs, images = joined, for_residual, None
            if count < len(x):
                images = scale.argsort(descending=True, stable=True)[:count]
                scale, rows = scale.index_select(0, images), take_images(joined, images)
                inputs = tuple(
                    rows if value is joined else take_images(value, images)
                    for value in for_residual
                )
            added: Tensor = self.parts.residual(self, *inputs)
            is_skipped = scale.view(-1, *[1] * (added.ndim - 1)) == 0
            rows.add_(added.masked_fill_(is_skipped, 0))
            if settled and self.rectifies:
                rows.relu_()
            if images is not None:
                put_images(joined, images, rows)
        return (joined if settled else self._finished(joined),)

    def _finished(self, joined: Tensor) -> Tensor:
        if self.parts.tail is None:
            return joined
        output: Tensor = joined.relu_() if self.rectifies else self.parts.tail(self, joined)
        return output


def launched_counts(images: int) -> list[int]:
    """Return for how many images at a time a block is recorded: a sixteenth of a batch, and so on.

    Example:
        >>> launched_counts(2), launched_counts(40)
        ([1, 2], [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 40])
    """
    step = -(-images // PARTS)
    return [*range(step, images, step), images]


def groups(
    executed: Sequence[bool], size: int, positions: int, device: torch.device | str = "cpu"
) -> Iterator[slice | Tensor]:
    """Yield the images to compute together.

    Args:
        executed: ``(N,)``, which images are to be computed.
        size: Bytes of an image's features.
        positions: Their height times width.
        device: Where they lie.

    Yields:
        A slice of the batch, or the positions of images in it.

    Example:
        >>> list(groups([True, True, False, True], size=2**20, positions=28 * 28))
        [slice(0, 2, None), slice(3, 4, None)]
        >>> list(groups([True, True, False, True], size=2**20, positions=14 * 14))
        [tensor([0, 1, 3])]
    """
    is_wide = positions >= WIDE and torch.device(device).type == "cpu"
    in_place = is_wide and size >= LARGE
    together = max(CACHED // size, 1) if is_wide else len(executed)
    if in_place or all(executed):
        yield from _runs(executed, NEIGHBOURS if in_place else together)
        return
    chosen = [number for number, runs in enumerate(executed) if runs]
    for first in range(0, len(chosen), together):
        yield torch.tensor(chosen[first : first + together], device=device)


def neighbours(images: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield runs of neighbours, as slices of the batch and of the images that were gathered.

    Example:
        >>> list(neighbours([0, 1, 5]))
        [(slice(0, 2, None), slice(0, 2, None)), (slice(5, 6, None), slice(2, 3, None))]
    """
    for _, run in groupby(enumerate(images), lambda pair: pair[1] - pair[0]):
        places, numbers = zip(*run, strict=True)
        yield slice(numbers[0], numbers[-1] + 1), slice(places[0], places[-1] + 1)


def _runs(executed: Sequence[bool], most: int) -> Iterator[slice]:
    start = 0
    for runs, same in groupby(executed):
        end = start + len(list(same))
        if runs:
            for first in range(start, end, most):
                yield slice(first, min(first + most, end))
        start = end


def _picked(value: Tensor, images: slice | Tensor) -> Tensor:
    return value[images] if isinstance(images, slice) else take_images(value, images)


def _add_rectified(x: Tensor, added: Tensor) -> Tensor:
    """Add in place and set what is negative to zero; on a CPU in one pass over memory.

    That pass takes infinity for the largest number there is, and may take what is no number for 0.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return torch._add_relu_(x, added)
    return x.add_(added).relu_()


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
