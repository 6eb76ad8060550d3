"""Hints: what a network's features should be where its stages end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.blocks import Split
from aigtool.conversion import gate_policy
from aigtool.discovery import find_splits
from aigtool.modes import in_mode


def stage_ends(network: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Return the names of the residual blocks after which features change their shape, or end.

    Args:
        network: Gated or not.
        input_size: Channels, height, width.

    Example:
        >>> import torchvision
        >>> stage_ends(torchvision.models.resnet18(), (3, 64, 64))
        ['layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']
    """
    blocks = [name for name, parts in find_splits(network).items() if isinstance(parts, Split)]
    shapes = _shapes(network, blocks, input_size)
    following = [*list(shapes.values())[1:], None]
    return [name for name, after in zip(shapes, following, strict=True) if shapes[name] != after]


def shared_places(
    network: nn.Module, teacher: nn.Module, input_size: tuple[int, int, int]
) -> list[str]:
    """Return where the teacher's stages end, if the network has the same features there.

    Returns:
        Names of modules of both; none if one of them is missing in the network, or another shape.

    Example:
        >>> import torchvision
        >>> network, size = torchvision.models.resnet18(), (3, 64, 64)
        >>> shared_places(network, network, size)[-1]
        'layer4.1'
        >>> shared_places(network, torchvision.models.resnet34(), size)
        []
    """
    places = stage_ends(teacher, input_size)
    if not {*places} <= {name for name, _ in network.named_modules()}:
        return []
    own, wanted = (_shapes(each, places, input_size) for each in (network, teacher))
    return places if own == wanted else []


def _shapes(
    network: nn.Module, places: Sequence[str], input_size: tuple[int, int, int]
) -> dict[str, torch.Size]:
    """Return the shapes of features, in the order in which modules run."""
    weight = next(network.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    with (
        torch.no_grad(),
        in_mode(network, training=False),
        gate_policy(network, "open"),
        recorded_features(network, places) as features,
    ):
        network(image)
    return {name: tensor.shape for name, tensor in features.items()}


def hint_loss(features: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return the share of wanted features' variance that features miss, the mean over places.

    Romero et al., FitNets (ICLR 2015), section 2.2, without a regressor: the shapes are the same.

    Args:
        features: By place, ``(N, C, H, W)``.
        wanted: Alike, of another network.

    Example:
        >>> wanted = {"a": torch.tensor([[1.0, -1.0, 1.0, -1.0]])}
        >>> hint_loss({"a": torch.zeros(1, 4)}, wanted)
        tensor(1.)
    """
    missed = [
        F.mse_loss(features[place].float(), want.float()) / want.float().var(correction=0)
        for place, want in wanted.items()
    ]
    return torch.stack(missed).mean()


@contextmanager
def recorded_features(network: nn.Module, places: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record what modules returned in the latest forward pass, with its gradient.

    A network compiled with ``torch.compile`` must be called first within, as for
    ``recorded_decisions``.

    Args:
        network: Any.
        places: Names of its modules.

    Yields:
        A dict from name to features, filled by each forward pass.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Identity())
        >>> with recorded_features(network, ["1"]) as features:
        ...     _ = network(torch.zeros(2, 3, 4))
        >>> features["1"].shape
        torch.Size([2, 12])
    """
    features: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def record(_module: nn.Module, _inputs: tuple[Tensor], out: Tensor) -> None:
            features[name] = out

        return record

    with ExitStack() as stack:
        for name in places:
            hook = network.get_submodule(name).register_forward_hook(recorder(name))
            stack.callback(hook.remove)
        yield features
