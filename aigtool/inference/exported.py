"""An exported network: run by onnxruntime, and checked against the network it was made of."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.inference.answers import Answering, Answers, check_size
from aigtool.inference.exporting import METADATA
from aigtool.models.description import Description

SUFFIX = ".onnx"
TOLERANCE = 1e-4
"""What logits may differ by, and how near its threshold a gate's logit is a tie."""


class ExportedNetwork:
    """A network that ``export_onnx`` made, run by onnxruntime on the CPU.

    Several threads may ask at a time.

    Args:
        model: The file, or its bytes.
        threads: That an operation may use; as many as there are cores by default.

    Raises:
        UserError: onnxruntime is not installed, or this is no such file.
    """

    def __init__(self, model: str | Path | bytes, threads: int | None = None) -> None:
        self.session = open_session(model, threads)
        about = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if about is None:
            raise UserError(
                f"exported file {model!s} holds no description of a network; expected one that "
                "`aigtool export` wrote"
            )
        values = json.loads(about)
        counts = values.pop("flops")
        blocks = tuple(BlockFlops(**block) for block in counts.pop("blocks"))
        self.flops = NetworkFlops(**counts, blocks=blocks)
        self.description = Description.from_json(values)

    def __call__(self, pixels: Tensor) -> Answers:
        """Ask for a batch of images, ``(N, C, H, W)``, pixels in 0..1; one after the other.

        Raises:
            UserError: The images are of another size than the network's input.
        """
        check_size(pixels, self.description)
        rows = [self.session.run(None, {"pixels": row[None]}) for row in pixels.float().numpy()]
        logits, *decided = (
            torch.from_numpy(np.concatenate(each)) for each in zip(*rows, strict=True)
        )
        if not decided:
            decided = [torch.zeros(len(pixels), 0), torch.zeros(len(pixels), 0, dtype=torch.bool)]
        return Answers(logits, *decided)


def open_session(model: str | Path | bytes, threads: int | None = None) -> Any:
    """Open an ONNX model with onnxruntime.

    Args:
        model: The file, or its bytes.
        threads: That an operation may use; as many as there are cores by default.

    Returns:
        The session.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing or no ONNX model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "an exported file is run by onnxruntime, which is not installed; "
            "pip install 'aigtool[onnx]'"
        ) from error
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise UserError(f"exported file {model}: no such file; `aigtool export` writes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Else threads that wait for the next image keep those of others, who decode it, from running.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
        )
    # Its errors have no base of their own.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"exported file {model if not isinstance(model, bytes) else ''} cannot be opened "
            f"({reason}); expected one that `aigtool export` wrote"
        ) from error


@dataclass(frozen=True)
class Check:
    """How an exported network compares with what it was made of.

    Attributes:
        images: That both were asked about.
        ties: Images with a gate whose logit is so near its threshold that rounding decides.
        difference: The largest difference of a logit, of images that are no ties, as a share of
            the largest logit where that is above 1.
        flips: Images that are no ties of which a gate decided otherwise.
    """

    images: int
    ties: int
    difference: float
    flips: int

    @property
    def holds(self) -> bool:
        """Whether all that is no tie is decided alike, with logits within the tolerance."""
        return self.flips == 0 and self.difference <= TOLERANCE


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
    images = ties = flips = 0
    largest = scale = 0.0
    for pixels in batches:
        ours, theirs = exported(pixels), original(pixels)
        near = ((theirs.gate_logits - torch.tensor(thresholds)).abs() < TOLERANCE).any(dim=1)
        images, ties = images + len(pixels), ties + int(near.sum())
        flips += int((ours.executed != theirs.executed).any(dim=1)[~near].sum())
        if not near.all():
            difference = (ours.logits - theirs.logits)[~near].abs().max().item()
            largest = max(largest, difference)
            scale = max(scale, theirs.logits[~near].abs().max().item())
    return Check(images, ties, largest / max(1.0, scale), flips)
