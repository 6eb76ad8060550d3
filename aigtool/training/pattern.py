"""The blocks that a network can best do without, all images alike: where its gates start."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from aigtool.budget import Budget
from aigtool.conversion import named_gates
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.flops import NetworkFlops
from aigtool.inference.serving import serve
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model

MOST_IMAGES = 512
"""Whose loss is looked at."""
ROUNDING = 1e-9
"""Of weights that are summed: a budget of three blocks in five is three blocks."""


def skip_least(
    model: Model,
    images: ImageSet,
    flops: NetworkFlops,
    budget: Budget,
    on_skip: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Take blocks away one by one, each time the one without which the loss is least.

    What a block is worth changes with those that are gone, so each that is left is looked at anew:
    ``n`` blocks of which ``k`` go are ``k (2n - k + 1) / 2`` looks.

    Args:
        model: Its network is gated; it is left as it is.
        images: With labels; ``MOST_IMAGES`` of them are looked at.
        flops: What ``count_flops`` counted for the network.
        budget: What is left to spend.
        on_skip: Called with the name of each block that is taken away.

    Returns:
        The names of the blocks to skip, in the order in which they were taken away.

    Raises:
        UserError: Closed gates alone overspend the budget, or the network has no gates.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.data.images import open_images
        >>> from aigtool.data.loading import eval_transform
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.zoo import create_network, describe
        >>> network = convert(create_network("cifar_resnet20")).eval()
        >>> model = Model(network, describe("cifar_resnet20", network))
        >>> images = open_images("digits", "val", eval_transform(model.description.input))
        >>> flops = count_flops(network, model.description.input.size)
        >>> len(skip_least(model, images.limited(16), flops, Budget(0.7)))
        3
    """
    budget.check(flops)
    names = [block.name for block in flops.gated_blocks]
    weights = dict(zip(names, budget.weights(flops).tolist(), strict=True))
    loss_without = _measured_without(model, images.limited(MOST_IMAGES))
    left, skipped = names, list[str]()
    while sum(weights[name] for name in left) > budget.mean_rate(flops) + ROUNDING:
        least = min(left, key=lambda name: loss_without([*skipped, name]))
        left = [name for name in left if name != least]
        skipped.append(least)
        on_skip(least)
    return skipped


def _measured_without(model: Model, images: ImageSet) -> Callable[[Sequence[str]], float]:
    """Return what tells a network's mean cross entropy when named blocks are skipped."""
    device = next(model.network.parameters()).device
    served = serve(model.network, model.description.input.size)
    network = PixelNetwork(served, model.description.input).to(device).eval()
    loaded = load_batches(images)
    batches = [(pixels.to(device), labels.to(device)) for pixels, labels in loaded]

    @torch.inference_mode()
    def loss_without(skipped: Sequence[str]) -> float:
        for name, gate in named_gates(served):
            gate.policy = "closed" if name in skipped else "open"
        losses = [F.cross_entropy(network(x).float(), y, reduction="sum") for x, y in batches]
        return torch.stack(losses).sum().item() / len(images)

    return loss_without


@torch.no_grad()
def start_without(network: nn.Module, skipped: list[str]) -> None:
    """Let new gates begin by skipping some blocks as surely as they execute the others.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20")).eval()
        >>> start_without(network, ["layer1.1"])
        >>> gates = dict(named_gates(network))
        >>> features = torch.zeros(1, 16, 8, 8)
        >>> [round(gates[f"layer1.{n}"](features).logit.item(), 2) for n in range(3)]
        [1.9, -1.9, 1.9]
    """
    gates = dict(named_gates(network))
    for name in skipped:
        bias = gates[name].fc2.bias
        bias.copy_(bias.flip(0))
