"""A gated network compiled so that a GPU computes gates beside blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from aigtool.blocks import GatedBlock


class CompiledBranches:
    """The branches of a network's gated blocks, compiled each for itself.

    PyTorch compiles for one stream, on which a gate's small kernels come before its block's
    convolutions; ``GatedBlock`` launches them beside each other. Shapes are fixed, as it would take
    those of different blocks for different shapes of one.

    Args:
        network: Trained on a GPU; it is left as it is but for the time ``in_place``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.blocks = [module for module in network.modules() if isinstance(module, GatedBlock)]
        self.plain = [block.parts for block in self.blocks]
        self.compiled = [
            replace(
                parts,
                residual=torch.compile(parts.residual, dynamic=False),
                shortcut=torch.compile(parts.shortcut, dynamic=False),
            )
            for parts in self.plain
        ]
        # What compiles the whole network stops at a block, and goes on after it.
        self.forwards = [torch.compiler.disable(block.forward) for block in self.blocks]  # type: ignore[no-untyped-call]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network run them within."""
        for block, parts, forward in zip(self.blocks, self.compiled, self.forwards, strict=True):
            block.parts = parts
            block.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block, parts in zip(self.blocks, self.plain, strict=True):
                block.parts = parts
                del block.forward
