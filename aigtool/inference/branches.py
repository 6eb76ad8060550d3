"""A served network that a tracer can follow: each gate selects between two ways of its block."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigtool.inference.serving import serve
from aigtool.inference.skipping import SkippingBlock
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model


class Selected(NamedTuple):
    """What a block gave for one image.

    Attributes:
        logit: ``(1,)``, of its gate.
        executed: ``(1,)``, whether that exceeds the threshold.
        output: ``(1, C, H, W)``.
    """

    logit: Tensor
    executed: Tensor
    output: Tensor


class BranchingBlock(SkippingBlock, ABC):
    """A block that is told in operators alone, for one image.

    Args:
        block: Of a served network; its layers are shared.
    """

    selected: Selected
    spares_tail = True
    """Whether the tail is left out where it changes nothing."""

    def __init__(self, block: SkippingBlock) -> None:
        super().__init__(block, overwrites=block.overwrites, rectified=block.rectified)
        self.threshold: Tensor | None = None
        """In place of its gate's."""

    @abstractmethod
    def select(self, executed: Tensor, x: Tensor) -> Tensor:
        """Return ``run(x)`` if ``executed (1,)`` is true, else ``skip(x)``."""

    def run(self, x: Tensor) -> Tensor:
        """Return what the block gives if it is executed."""
        for_residual, for_shortcut = self.parts.head(self, x)
        shortcut = self.parts.shortcut(self, *for_shortcut)
        if shortcut is x:
            shortcut = self.addend(x)
        joined: Tensor = shortcut + self.parts.residual(self, *for_residual)
        return joined if self.parts.tail is None else self.parts.tail(self, joined)

    def skip(self, x: Tensor) -> Tensor:
        """Return what it gives if not; this may be ``x`` itself."""
        _, for_shortcut = self.parts.head(self, x)
        shortcut: Tensor = self.parts.shortcut(self, *for_shortcut)
        if self.parts.tail is None or (self.spares_tail and self.settles(shortcut, x)):
            return shortcut
        output: Tensor = self.parts.tail(self, shortcut.clone())
        return output

    def addend(self, x: Tensor) -> Tensor:
        """Return the input as the residual is to be added to."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Compute one of the two ways."""
        logit = self.gate.logit(x)
        executed = logit > (self.gate.threshold if self.threshold is None else self.threshold)
        self.selected = Selected(logit, executed, self.select(executed, x))
        return self.selected.output


class BranchingNetwork(nn.Module):
    """A network served by such blocks.

    It takes ``pixels (1, C, H, W)`` in 0..1, and thresholds of the gates if any are given, each
    ``(1,)``. It gives ``logits (1, classes)`` and, if it has gates, their logits and whether each
    executed, both ``(1, gates)``, and what each block gave.

    Args:
        model: It is left as it is.
        gates: Names of the gated blocks, in the order of columns.
        kind: Of the blocks.
    """

    def __init__(self, model: Model, gates: list[str], kind: type[BranchingBlock]) -> None:
        super().__init__()
        network = serve(model.network, model.description.input.size)
        self.blocks = {}
        for name in gates:
            block = network.get_submodule(name)
            assert isinstance(block, SkippingBlock)
            self.blocks[name] = kind(block).eval()
            network.set_submodule(name, self.blocks[name])
        self.network = PixelNetwork(network, model.description.input)
        self.eval()

    def forward(self, pixels: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
        """Compute an image."""
        for block, threshold in zip(self.blocks.values(), thresholds, strict=False):
            block.threshold = threshold
        logits = self.network(pixels)
        if not self.blocks:
            return (logits,)
        made = [block.selected for block in self.blocks.values()]
        columns = (torch.cat(values).unsqueeze(0) for values in list(zip(*made, strict=True))[:2])
        return (logits, *columns, *(one.output for one in made))
