"""Hints: what a network's features should be where its stages end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.conversion import Shapes, block_shapes


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
    return _ends(block_shapes(network, input_size))


def _ends(shapes: Mapping[str, Shapes]) -> list[str]:
    names, reshapes = [*shapes], [taken != given for taken, given in shapes.values()]
    ends = [name for name, changes in zip(names, reshapes[1:], strict=False) if changes]
    return ends + names[-1:]


def shared_places(
    network: nn.Module, teacher: nn.Module, input_size: tuple[int, int, int]
) -> list[str]:
    """Return where the teacher's stages end, if the network has the same features there.

    Returns:
        Names of blocks of both; none if one of them is missing in the network, or another shape.

    Example:
        >>> import torchvision
        >>> network, size = torchvision.models.resnet18(), (3, 64, 64)
        >>> shared_places(network, network, size)[-1]
        'layer4.1'
        >>> shared_places(network, torchvision.models.resnet34(), size)
        []
    """
    own, wanted = (block_shapes(each, input_size) for each in (network, teacher))
    places = _ends(wanted)
    same = all(place in own and own[place].given == wanted[place].given for place in places)
    return places if same else []


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
