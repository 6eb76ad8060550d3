"""What a network answers and decides, asked from any number of threads."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from aigtool.conversion import named_gates, set_policy
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops, count_flops
from aigtool.gates import Decision
from aigtool.inference.serving import serve
from aigtool.models.description import Description, PixelNetwork
from aigtool.models.files import Model


@dataclass(frozen=True)
class Answers:
    """What a network gave for a batch, on the CPU.

    Attributes:
        logits: ``(N, classes)``.
        gate_logits: ``(N, gates)``, each gate's logit difference "execute" minus "skip".
        executed: ``(N, gates)``, whether the image executed the block.
    """

    logits: Tensor
    gate_logits: Tensor
    executed: Tensor


class Answering(Protocol):
    """A network to ask, in PyTorch or exported.

    Attributes:
        description: What its file says.
        flops: Its counts; their gated blocks name the columns of what it decides.
    """

    description: Description
    flops: NetworkFlops

    def __call__(self, pixels: Tensor) -> Answers:
        """Ask for a batch of images, ``(N, C, H, W)``, pixels in 0..1."""


class ServedNetwork:
    """A network made ready to serve, which several threads may ask at a time.

    Args:
        model: Gated or not; it is left as it is. Its gates decide as its description says.
        device: Where to compute.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.models.zoo import create_network, describe
        >>> network = create_network("cifar_resnet20")
        >>> description = describe("cifar_resnet20", network)
        >>> ask = ServedNetwork(Model(convert(network), description))
        >>> answers = ask(torch.rand(2, 3, 32, 32))
        >>> answers.logits.shape, answers.executed.shape
        (torch.Size([2, 10]), torch.Size([2, 9]))
    """

    def __init__(self, model: Model, device: torch.device | str = "cpu") -> None:
        self.description = model.description
        self.flops = count_flops(model.network, model.description.input.size)
        served = serve(model.network, model.description.input.size)
        set_policy(served, model.description.policy)
        self.network = PixelNetwork(served, model.description.input).to(device).eval()
        self._mine = threading.local()
        for name, gate in named_gates(served):
            gate.register_forward_hook(partial(self._note, name))

    def _note(
        self, name: str, _gate: nn.Module, _inputs: tuple[Tensor, ...], decision: Decision
    ) -> None:
        self._mine.decisions[name] = decision

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Answers:
        """Ask for a batch of images, ``(N, C, H, W)``, pixels in 0..1.

        Raises:
            UserError: The images are of another size than the network's input.
        """
        check_size(pixels, self.description)
        decisions: dict[str, Decision] = {}
        self._mine.decisions = decisions
        logits = self.network(pixels.to(self.network.mean.device)).float().cpu()
        made = [decisions[block.name] for block in self.flops.gated_blocks]
        return Answers(
            logits,
            gate_logits=_columns([d.logit for d in made], len(pixels)),
            executed=_columns([d.scale > 0 for d in made], len(pixels)).bool(),
        )


def check_size(pixels: Tensor, description: Description) -> None:
    """Refuse images that a network was not made for.

    Raises:
        UserError: They are of another size.
    """
    size = description.input.size
    if tuple(pixels.shape[1:]) != tuple(size):
        raise UserError(
            f"images of shape {tuple(pixels.shape)}: expected (N, {', '.join(map(str, size))}); "
            "resize them as the network's description says"
        )


def _columns(values: list[Tensor], count: int) -> Tensor:
    return torch.stack(values, dim=1).cpu() if values else torch.zeros(count, 0)


def together(images: Iterable[Sequence[Tensor]]) -> Answers:
    """Put together what a network gave that takes one image at a time.

    Args:
        images: Of each ``logits (1, classes)`` and, where there are gates, their logits and whether
            each executed, both ``(1, gates)``.
    """
    logits, *decided = (torch.cat(values) for values in zip(*images, strict=True))
    if not decided:
        decided = [torch.zeros(len(logits), 0), torch.zeros(len(logits), 0, dtype=torch.bool)]
    return Answers(logits, *decided)
