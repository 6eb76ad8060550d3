"""A gated network made ready to serve."""

import copy
from typing import TypeVar

from torch import nn

from aigtool.blocks import GatedBlock
from aigtool.conversion import named_gates
from aigtool.device import to_channels_last
from aigtool.errors import UserError
from aigtool.inference.folding import FoldedGate, fold_norms
from aigtool.inference.launching import Launches
from aigtool.inference.packing import pack_convolutions
from aigtool.inference.reading import read
from aigtool.inference.skipping import SkippingBlock

Network = TypeVar("Network", bound=nn.Module)


def serve(network: Network, input_size: tuple[int, int, int] = (3, 224, 224)) -> Network:
    """Return a copy of a network for inference alone, which skips with as few copies as it can.

    Batch norms are folded into the convolutions before them and the layout is channels-last; on a
    CPU convolutions of small features, or of few images, keep their weights laid out, which takes
    as much memory again. The copy computes what the network computes in evaluation mode, logits and
    decisions, but for rounding.

    Args:
        network: A gated network, or a dense one.
        input_size: Channels, height and width of its input.

    Returns:
        The copy. It writes over features that nothing in it reads again: whoever watches it with
        hooks should clone what is to be kept.

    Raises:
        UserError: The network is served already, or cannot be run on an input of that size.

    Example:
        >>> import torch, torchvision
        >>> from aigtool.conversion import convert
        >>> network = convert(torchvision.models.resnet18()).eval()
        >>> served, x = serve(network, (3, 32, 32)), torch.randn(2, 3, 32, 32)
        >>> with torch.inference_mode():
        ...     print(torch.allclose(served(x), network(x), atol=1e-4))
        True
    """
    if any(isinstance(gate, FoldedGate) for _, gate in named_gates(network)):
        raise UserError("the network is served already: expected the one that it was made of")
    served = copy.deepcopy(network).eval().requires_grad_(False)
    found = read(served, input_size)
    fold_norms(served, found.norms)
    pack_convolutions(served)
    launches = Launches()
    for name, gate in list(named_gates(served)):
        served.set_submodule(f"{name}.gate", FoldedGate(gate, launches))
    blocks = {name: m for name, m in served.named_modules() if isinstance(m, GatedBlock)}
    followed = {found.following[name] for name in found.overwritable if name in found.following}
    for name, block in blocks.items():
        before = blocks.get(found.following.get(name, ""))
        rectified = before is not None and before.ends_rectified()
        skipping = SkippingBlock(
            block,
            overwrites=name in found.overwritable,
            rectified=rectified,
            is_followed=name in followed,
        )
        served.set_submodule(name, skipping.eval())
    return to_channels_last(served)
