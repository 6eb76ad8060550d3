"""An exported network, run by onnxruntime."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.inference.answers import Answers, check_size, together
from aigtool.inference.exporting import METADATA
from aigtool.models.description import Description

SUFFIX = ".onnx"


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
        name = "" if isinstance(model, bytes) else f" {model}"
        self.session = open_session(model, threads)
        about = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if about is None:
            raise UserError(
                f"exported file{name} holds no description of a network; expected one that "
                "`aigtool export` wrote"
            )
        try:
            values = json.loads(about)
            counts = values.pop("flops")
            self.description = Description.from_json(values)
            blocks = tuple(BlockFlops(**block) for block in counts.pop("blocks"))
            self.flops = NetworkFlops(**counts, blocks=blocks)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"exported file{name}: its description cannot be read ({error!r}); expected one "
                "that this version of `aigtool export` wrote"
            ) from error

    def __call__(self, pixels: Tensor) -> Answers:
        """Ask for a batch of images, ``(N, C, H, W)``, pixels in 0..1; one after the other.

        Raises:
            UserError: The images are of another size than the network's input.
        """
        check_size(pixels, self.description)
        rows = (self.session.run(None, {"pixels": row[None]}) for row in pixels.float().numpy())
        return together([*map(torch.from_numpy, row)] for row in rows)


def import_onnxruntime() -> Any:
    """Return the package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "an exported file is run by onnxruntime, which is not installed; "
            "pip install 'aigtool[onnx]'"
        ) from error
    return onnxruntime


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
    onnxruntime = import_onnxruntime()
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
            f"exported file{'' if isinstance(model, bytes) else f' {model}'} cannot be opened "
            f"({reason}); expected one that `aigtool export` wrote"
        ) from error
