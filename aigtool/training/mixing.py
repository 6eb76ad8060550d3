"""Minibatches of mixed images."""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_mixing(mixup: float, cutmix: float, classes: int) -> Mixing:
    """Return what mixes a minibatch: torchvision's mixup, CutMix, or one of them by chance.

    Args:
        mixup: alpha of mixup (Zhang et al., ICLR 2018); 0 is none.
        cutmix: alpha of CutMix (Yun et al., ICCV 2019); 0 is none.
        classes: Outputs of the network.

    Returns:
        Pixels ``(N, C, H, W)`` and labels ``(N,)`` to mixed pixels and, where anything was asked
        for, the classes' shares ``(N, classes)``.

    Example:
        >>> import torch
        >>> pixels, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed, shares = make_mixing(0.2, 0.0, classes=3)(pixels, labels)
        >>> mixed.shape, shares.shape, shares.sum(1).allclose(torch.ones(4))
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]), True)
        >>> make_mixing(0.0, 0.0, classes=3)(pixels, labels)[1].tolist()
        [0, 1, 2, 1]
    """
    kinds: list[v2.Transform] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if not kinds:
        return lambda pixels, labels: (pixels, labels)
    return v2.RandomChoice(kinds)  # type: ignore[no-any-return]
