"""Ways to run a network, each with gates that can be told what to decide."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aigtool.conversion import named_gates, recorded_decisions, set_policy
from aigtool.device import synchronize
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.inference.exported import import_onnxruntime, open_session
from aigtool.inference.exporting import check_policy, export_onnx
from aigtool.inference.launching import Launches
from aigtool.inference.serving import serve
from aigtool.inference.skipping import SkippingBlock
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model

EngineName = Literal["eager", "skip", "compile", "onnx"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class Engine(Protocol):
    """A network in the form in which an engine runs it."""

    def __call__(self, pixels: Tensor) -> Any:
        """Run it on a batch and wait for the result."""

    def decide(self, executed: Tensor | None) -> None:
        """Say what the gates will decide of the next batches, ``(N, gates)``; None lets them."""

    def decisions(self, pixels: Tensor) -> npt.NDArray[np.bool_]:
        """Return what the gates decide of a batch, ``(N, gates)``."""


class TorchEngine:
    """A network run by PyTorch: as it is (``eager``), served (``skip``), or that compiled.

    Told decisions come by way of the thresholds, so that gates take the time that they take.
    """

    def __init__(
        self, model: Model, name: EngineName, device: torch.device, dtype: torch.dtype
    ) -> None:
        if name == "eager":
            network = copy.deepcopy(model.network).eval().requires_grad_(False)
        else:
            network = serve(model.network, model.description.input.size)
        set_policy(network, "argmax")
        self.network = network
        self.gates = [gate for _, gate in named_gates(network)]
        self.own = [gate.threshold.clone() for gate in self.gates]
        self.device = device
        self.pixelled = PixelNetwork(network, model.description.input).to(device, dtype).eval()
        self.run: Callable[[Tensor], Any] = self.pixelled
        if name == "skip" and not self.gates:
            self.run = _LaunchedWhole(self.pixelled)
        if name == "compile":
            _compile_residuals(network)
            self.run = torch.compile(self.pixelled)
        self.decide(None)  # with thresholds that the type did not round

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Any:
        """Run it on a batch and wait for the result."""
        logits = self.run(pixels)
        synchronize(self.device)
        return logits

    def decide(self, executed: Tensor | None) -> None:
        """Say what the gates will decide of the next batches, ``(N, gates)``; None lets them."""
        for number, gate in enumerate(self.gates):
            if executed is None:
                gate.threshold = self.own[number].to(self.device)
            else:
                told = torch.where(executed[:, number], -torch.inf, torch.inf)
                gate.threshold = told.to(self.device)

    @torch.inference_mode()
    def decisions(self, pixels: Tensor) -> npt.NDArray[np.bool_]:
        """Return what the gates decide of a batch, ``(N, gates)``."""
        with recorded_decisions(self.network) as made:
            self.pixelled(pixels)
        names = [name for name, _ in named_gates(self.network)]
        executed: npt.NDArray[np.bool_] = (
            torch.stack([made[name].scale > 0 for name in names], dim=1).cpu().numpy()
        )
        return executed


class _LaunchedWhole:
    """A network without gates, which a GPU can run as one CUDA graph."""

    def __init__(self, network: PixelNetwork) -> None:
        self.network, self.launches = network, Launches()
        self._owner = object()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Run it on a batch; the next call may write over what it returns."""
        desk = self.launches.desk(self._owner, pixels)
        if desk is None:
            return self._compute(0, pixels)[0]
        return desk.run(self._owner, self._compute, 0, (0,), pixels)[0]

    def _compute(self, _variant: int, pixels: Tensor) -> tuple[Tensor]:
        return (self.network(pixels),)


def _compile_residuals(network: nn.Module) -> None:
    """Compile each block's residual for itself, for any number of images.

    Which images run a block is known only when its gate has decided. Compiled with the network, a
    block would be compiled anew for each pattern, until PyTorch gives it up.
    """
    for block in network.modules():
        if isinstance(block, SkippingBlock):
            block.gate.launches.is_off = True
            compiled = torch.compile(block.parts.residual, dynamic=True)
            block.parts = replace(block.parts, residual=compiled)
            block.forward = torch.compiler.disable(block.forward)  # type: ignore[method-assign, no-untyped-call]


class OnnxEngine:
    """A network exported and run by onnxruntime on the CPU, an image at a time."""

    def __init__(self, model: Model, threads: int) -> None:
        flops = count_flops(model.network, model.description.input.size)
        self.names = [block.name for block in flops.gated_blocks]
        self.own = [gate.threshold.numpy() for _, gate in named_gates(model.network)]
        program = export_onnx(model, flops, thresholds_as_inputs=True)
        self.session = open_session(program.SerializeToString(), threads)
        self.thresholds: list[dict[str, np.ndarray[Any, Any]]] = []
        self.decide(None)

    def __call__(self, pixels: Tensor) -> Any:
        """Run it on a batch, image by image."""
        images = pixels.numpy()
        told = self.thresholds * (len(images) if len(self.thresholds) == 1 else 1)
        return [
            self.session.run(None, {"pixels": image[None], **thresholds})
            for image, thresholds in zip(images, told, strict=True)
        ]

    def decide(self, executed: Tensor | None) -> None:
        """Say what the gates will decide of the next batches, ``(N, gates)``; None lets them."""
        if executed is None:
            rows = [[threshold.reshape(1) for threshold in self.own]]
        else:
            told = torch.where(executed, -torch.inf, torch.inf).numpy()
            rows = [[value.reshape(1) for value in row] for row in told]
        self.thresholds = [dict(zip(self.names, row, strict=True)) for row in rows]

    def decisions(self, pixels: Tensor) -> npt.NDArray[np.bool_]:
        """Return what the gates decide of a batch, ``(N, gates)``."""
        executed: npt.NDArray[np.bool_] = np.concatenate([given[2] for given in self(pixels)])
        return executed


def make_engines(
    model: Model, name: EngineName, device: torch.device, dtype: torch.dtype, threads: int
) -> tuple[Engine, Engine]:
    """Prepare a gated network, and the network before gating, for one engine.

    Raises:
        UserError: The engine cannot run on this device or with this type, or is not installed.
    """
    check_engine(model, name, device, dtype)
    if name == "compile":
        torch.compiler.reset()  # what was compiled for other settings counts against a limit
    dense = copy.deepcopy(model).stripped()
    if name == "onnx":
        return OnnxEngine(model, threads), OnnxEngine(dense, threads)
    gated, beside = (TorchEngine(one, name, device, dtype) for one in (model, dense))
    return gated, beside


def check_engine(model: Model, name: EngineName, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what an engine cannot do, before any is prepared.

    Raises:
        UserError: The engine cannot run on this device or with this type, or is not installed.
    """
    if name != "onnx":
        return
    import_onnxruntime()
    check_policy(model)
    if device.type != "cpu" or dtype != torch.float32:
        raise UserError(
            f"engine onnx on {device.type} with {str(dtype).removeprefix('torch.')}: expected cpu "
            "and float32; leave onnx out of --engine"
        )
