"""Pick images out of a batch, and add to some of them, along the batch's memory format.

PyTorch's ``index_select`` and ``index_add`` take several times longer on channels-last tensors than
on a permuted view of them, and return another format.
"""

import torch
from torch import Tensor


def take_images(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen images of a batch, in its memory format.

    Args:
        x: ``(N, ...)``.
        chosen: ``(M,)``, indices of images.

    Example:
        >>> x = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
        >>> taken = take_images(x, torch.tensor([2, 0]))
        >>> torch.equal(taken, x[[2, 0]]), taken.is_contiguous(memory_format=torch.channels_last)
        (True, True)
    """
    if not _is_channels_last(x):
        return x.index_select(0, chosen)
    return x.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)


def add_to_images(x: Tensor, chosen: Tensor, added: Tensor) -> Tensor:
    """Return a copy of a batch, in its memory format, with something added to the chosen images.

    Args:
        x: ``(N, ...)``.
        chosen: ``(M,)``, indices of images.
        added: ``(M, ...)``, of the same type.

    Example:
        >>> add_to_images(torch.zeros(3, 2), torch.tensor([2, 0]), torch.ones(2, 2))
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """
    joined = x.clone()
    if _is_channels_last(joined):
        joined.permute(0, 2, 3, 1).index_add_(0, chosen, added.permute(0, 2, 3, 1))
    else:
        joined.index_add_(0, chosen, added)
    return joined


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
