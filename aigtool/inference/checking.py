"""An exported network checked against the network it was made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aigtool.inference.answers import Answering

TOLERANCE = 1e-4
"""What logits may differ by, and how near its threshold a gate's logit is a tie."""


@dataclass(frozen=True)
class Check:
    """How an exported network compares with what it was made of.

    Attributes:
        images: That both were asked about.
        ties: Images with a gate whose logit is so near its threshold that rounding decides.
        compared: Images that both decided alike, ties among them.
        difference: The largest difference of a logit, of images that both decided alike, as a
            share of the image's largest logit where that is above 1; infinite where one is not a
            number.
        flips: Images decided otherwise that are no ties.
    """

    images: int
    ties: int
    compared: int
    difference: float
    flips: int

    @property
    def holds(self) -> bool:
        """Whether all that is no tie is decided alike, with logits within the tolerance.

        It does not where no image was decided alike.
        """
        return self.flips == 0 and self.difference <= TOLERANCE and self.compared > 0


def compare(
    exported: Answering,
    original: Answering,
    batches: Iterable[Tensor],
    thresholds: Sequence[float],
) -> Check:
    """Ask two networks about the same images.

    Args:
        exported: The one to check.
        original: The one to check by.
        batches: Images, each ``(N, C, H, W)``.
        thresholds: Of the original's gates.

    Returns:
        What was found.
    """
    images = ties = compared = flips = 0
    largest = 0.0
    for pixels in batches:
        ours, theirs = exported(pixels), original(pixels)
        near = ((theirs.gate_logits - torch.tensor(thresholds)).abs() < TOLERANCE).any(dim=1)
        alike = (ours.executed == theirs.executed).all(dim=1)
        images, ties = images + len(pixels), ties + int(near.sum())
        compared, flips = compared + int(alike.sum()), flips + int((~alike & ~near).sum())
        if alike.any():
            scale = theirs.logits.abs().amax(1).clamp(min=1)
            apart = (ours.logits - theirs.logits).abs().amax(1) / scale
            largest = max(largest, apart[alike].nan_to_num(nan=torch.inf).max().item())
    return Check(images, ties, compared, largest, flips)
