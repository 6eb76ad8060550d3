"""Pick images out of a batch, and add to some or by a factor each, as its memory format is best.

PyTorch's ``index_select`` and ``index_add`` take several times longer on channels-last tensors than
on a permuted view of them, and return another format. And what a block adds in training is as large
as the features: on a CPU, to allocate a product of that size takes longer than to compute it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from aigtool.gpu import is_unobserved, reads_here, suits_kernels

_CACHED = 2**19
"""Numbers whose products stay in a CPU's cache until they are summed."""


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


def put_images(x: Tensor, chosen: Tensor, images: Tensor) -> None:
    """Write images over the chosen ones of a batch.

    Args:
        x: ``(N, ...)``.
        chosen: ``(M,)``, indices of images.
        images: ``(M, ...)``, of the same type.

    Example:
        >>> x = torch.zeros(3, 2)
        >>> put_images(x, torch.tensor([2, 0]), torch.tensor([[1.0, 2], [3, 4]]))
        >>> x
        tensor([[3., 4.],
                [0., 0.],
                [1., 2.]])
    """
    if _is_channels_last(x):
        x.permute(0, 2, 3, 1).index_copy_(0, chosen, images.permute(0, 2, 3, 1))
    else:
        x.index_copy_(0, chosen, images)


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


def add_scaled(x: Tensor, added: Tensor, scale: Tensor, *, rectified: bool = False) -> Tensor:
    """Return a batch with something added to each image, times the image's own factor.

    ``x + scale * added`` without a product in memory, forwards or backwards.

    Args:
        x: ``(N, C, ...)``.
        added: As ``x``.
        scale: ``(N,)``.
        rectified: Whether a ReLU follows.

    Example:
        >>> scale = torch.tensor([0.0, 2.0], requires_grad=True)
        >>> joined = add_scaled(torch.ones(2, 3), torch.tensor([[1.0, 2, 3], [4, 5, 6]]), scale)
        >>> joined.sum().backward()
        >>> joined.tolist(), scale.grad
        ([[1.0, 1.0, 1.0], [9.0, 11.0, 13.0]], tensor([ 6., 15.]))
    """
    if torch.compiler.is_compiling():
        joined = torch.addcmul(x, _of_images(scale, x), added)
        return joined.relu() if rectified else joined
    reads_here(scale)
    dtype = torch.result_type(x, added)
    x, added, scale = (value.to(dtype) for value in (x, added, scale))
    if suits_kernels(x):
        from aigtool.kernels import AddScaled

        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        joined, means = AddScaled.apply(
            x, added.contiguous(memory_format=layout), scale.contiguous(), rectified
        )
        if is_unobserved():
            joined._channel_means = means, joined._version
        return cast(Tensor, joined)
    joined = cast(Tensor, _AddScaled.apply(x, added, scale))
    return joined.relu() if rectified else joined


def channel_means(x: Tensor) -> Tensor | None:
    """Return the means over positions that a GPU computed along with features, if it did.

    Args:
        x: ``(N, C, H, W)``.

    Returns:
        ``(N, C)`` in float32, of what ``add_scaled`` returned, ``unobserved``, and nothing has been
        written to. Their gradient does not come by way of the features.
    """
    if torch.compiler.is_compiling() or not is_unobserved():
        return None
    means, version = getattr(x, "_channel_means", (None, 0))
    if means is None or version != x._version:
        return None
    reads_here(means)
    return _whole(means)


def pool(x: Tensor) -> Tensor:
    """Return the means over positions of features that suit a GPU's kernels, ``(N, C)``."""
    from aigtool.kernels import Pool

    parts: Tensor = Pool.apply(x)
    return _whole(parts)


def _whole(parts: Tensor) -> Tensor:
    return parts.flatten(1) if parts.shape[1] == 1 else parts.sum(1)


class _AddScaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(added, scale)
        return torch.addcmul(x, _of_images(scale, x), added)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        added, scale = ctx.saved_tensors
        factor = _of_images(scale, grad)
        if torch.is_grad_enabled():  # This gradient's own gradient is wanted too.
            return grad, grad * factor, (grad * added).flatten(1).sum(1)
        if _on_cpu(grad) and bool((scale == 1).all()):
            return grad, grad, _inner_products(grad, added)
        return grad, grad * factor, _inner_products(grad, added)


def fork_images(x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch and the chosen images of it; their gradients are added up in one pass.

    Args:
        x: ``(N, ...)``.
        chosen: ``(M,)``, indices of images.

    Example:
        >>> x = torch.zeros(3, 2, requires_grad=True)
        >>> whole, taken = fork_images(x, torch.tensor([2, 0]))
        >>> (whole.sum() + 2 * taken.sum()).backward()
        >>> x.grad
        tensor([[3., 3.],
                [1., 1.],
                [3., 3.]])
    """
    last = _is_channels_last(x)
    # Permuted out here: a view that a function returned among others may not be written to.
    whole, taken = _Fork.apply(x.permute(0, 2, 3, 1) if last else x, chosen)
    if last:
        return whole.permute(0, 3, 1, 2), taken.permute(0, 3, 1, 2)
    return whole, taken


class _Fork(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(chosen)
        return x.view_as(x), x.index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, whole: Tensor, taken: Tensor) -> tuple[Tensor, None]:
        (chosen,) = ctx.saved_tensors
        return whole.index_add(0, chosen, taken), None


def add_executed(
    x: Tensor, executed: tuple[Tensor, Tensor], skipped: tuple[Tensor, Tensor], scale: Tensor
) -> Tensor:
    """Return a batch with what was executed added; the scale has the gradient of ``add_scaled``.

    It is ``add_scaled`` with factors of 0 and 1, but what is skipped needs no graph.

    Args:
        x: ``(N, C, ...)``.
        executed: ``(M,)``, the images whose factor is 1, and ``(M, C, ...)``, what these get.
        skipped: ``(N - M,)``, the other images, and ``(N - M, C, ...)``, what those would get.
        scale: ``(N,)``, each 0 or 1 as these say; only its gradient is asked for.

    Example:
        >>> scale = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> skipped, executed = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).split(1)
        >>> first, second = torch.tensor([0, 1]).split(1)
        >>> joined = add_executed(torch.ones(2, 3), (second, executed), (first, skipped), scale)
        >>> joined.sum().backward()
        >>> joined.tolist(), scale.grad
        ([[1.0, 1.0, 1.0], [5.0, 6.0, 7.0]], tensor([ 6., 15.]))
    """
    dtype = torch.result_type(x, executed[1])
    values = (v.to(dtype) for v in (x, scale, executed[1], skipped[1]))
    joined: Tensor = _AddExecuted.apply(*values, executed[0], skipped[0])
    return joined


class _AddExecuted(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _scale: Tensor, *parted: Tensor) -> Tensor:
        ctx.save_for_backward(*parted)
        executed, _, chosen, _ = parted
        return add_to_images(x, chosen, executed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        executed, skipped, chosen, left = ctx.saved_tensors
        of_executed, of_skipped = (take_images(grad, where) for where in (chosen, left))
        of_scale = grad.new_empty(len(grad))
        of_scale[chosen] = _inner_products(of_executed, executed)
        of_scale[left] = _inner_products(of_skipped, skipped)
        return grad, of_scale, of_executed, None, None, None


def _inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Return that of each image's values, ``(N,)``; on a CPU few images at a time."""
    few = max(1, _CACHED // max(1, a.shape[1:].numel())) if _on_cpu(a) else len(a)
    product = torch.empty_like(a[:few])
    dims = tuple(range(1, a.ndim))
    products = [
        torch.mul(of_a, of_b, out=product[: len(of_a)]).sum(dims)
        for of_a, of_b in zip(torch.split(a, few), torch.split(b, few), strict=True)
    ]
    return torch.cat(products)


def _of_images(scale: Tensor, x: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (x.ndim - 1))


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
