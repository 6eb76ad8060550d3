"""A gated network as a program of torch.export that skips without us."""

import warnings
from io import BytesIO

import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.export import ExportedProgram

from aigtool.flops import NetworkFlops
from aigtool.inference.answers import Answers, check_size, together
from aigtool.inference.branches import BranchingBlock, BranchingNetwork
from aigtool.inference.exporting import check_policy, facts
from aigtool.models.description import Description
from aigtool.models.files import Model


def export_program(model: Model, flops: NetworkFlops) -> ExportedProgram:
    """Trace a network into a program with one ``torch.cond`` a gated block.

    It takes ``pixels (1, C, H, W)`` in 0..1 and gives ``logits (1, classes)``, and, if it has
    gates, their logits and whether each executed, both ``(1, gates)``, in the order of ``flops``.

    Args:
        model: Its gates decide by argmax. It is left as it is.
        flops: What ``count_flops`` counted for it.

    Returns:
        The program; ``saved`` makes a file of it, and ``torch.export.load(...).module()`` runs
        it where aigtool is not installed.

    Raises:
        UserError: The network's gates do not decide by argmax.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.zoo import create_network, describe
        >>> network = create_network("cifar_resnet20")
        >>> gated = convert(network, ungated="first:7").eval()
        >>> model = Model(gated, describe("cifar_resnet20", network))
        >>> program = export_program(model, count_flops(network, (3, 32, 32)))
        >>> logits, gate_logits, executed = program.module()(torch.rand(1, 3, 32, 32))
        >>> logits.shape, executed.shape
        (torch.Size([1, 10]), torch.Size([1, 2]))
    """
    check_policy(model)
    network = _Answering(model, [block.name for block in flops.gated_blocks], _Conditional)
    pixels = next(network.parameters()).new_zeros(1, *model.description.input.size)
    # A number that differs between blocks is a constant of each, and no input of their branches.
    with torch.no_grad(), dynamo.patch(automatic_dynamic_shapes=False):
        return torch.export.export(network, (pixels,), strict=False)


def saved(program: ExportedProgram, description: Description, flops: NetworkFlops) -> bytes:
    """Return the file of a program, with what ``facts`` says of the network as extra files."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # Some versions warn of weights that are laid out channels-last.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, buffer, extra_files=facts(description, flops))
    return buffer.getvalue()


class _Conditional(BranchingBlock):
    """A block of one ``torch.cond``, whose branches give the same strides and not their input."""

    def select(self, executed: Tensor, x: Tensor) -> Tensor:
        output: Tensor = torch.cond(executed.squeeze(0), self.run, self.skip, (x,))
        return output

    def run(self, x: Tensor) -> Tensor:
        output = super().run(x)
        # Of one position several strides are channels-last.
        return _copied(output) if output[0, 0].numel() == 1 else output

    def skip(self, x: Tensor) -> Tensor:
        return _copied(super().skip(x))


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.channels_last)


class _Answering(BranchingNetwork):
    def forward(self, pixels: Tensor, *thresholds: Tensor) -> tuple[Tensor, ...]:
        return super().forward(pixels, *thresholds)[:3]


class ProgramNetwork:
    """A network that ``export_program`` made, asked as any other.

    Args:
        program: What it returned.
        description: Of what it was made of.
        flops: Its counts.
    """

    def __init__(
        self, program: ExportedProgram, description: Description, flops: NetworkFlops
    ) -> None:
        self.description, self.flops = description, flops
        self.run = program.module()

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Answers:
        """Ask for a batch of images, ``(N, C, H, W)``, pixels in 0..1; one after the other.

        Raises:
            UserError: The images are of another size than the network's input.
        """
        check_size(pixels, self.description)
        return together(self.run(row.unsqueeze(0)) for row in pixels.float())
