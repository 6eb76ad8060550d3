# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""What a GPU computes in one go, in Triton's language, where PyTorch would launch many kernels.

Imported where a GPU trains, and Triton, which comes with PyTorch's wheels for NVIDIA's, is there.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TILE, CHANNELS = 2**14, 64
"""Numbers of an image that one program takes, powers of two, and most channels that they are of."""
MOST_HIDDEN = 2**15
"""Hidden values of a batch that one program of a gate holds, powers of two."""


class AddScaled(Function):
    """``x + scale * added``, and a ReLU if it is to be rectified; ``picking.add_scaled``.

    All lie in memory as ``x`` does. Also returned is what its channels' means over positions are
    made of, ``(N, parts, C)`` in float32, to be added up over the parts: a gate asks for them, and
    a pass over memory is saved each way.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor, scale: Tensor, rectified: bool
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles.of(x)
        joined = tiles.empty(x)
        images, parts, _ = tiles.programs
        means = torch.empty(images, parts, x.shape[1], dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            _add_scaled[tiles.programs](
                x, added, scale, joined, means, *tiles.sizes, rectified, num_warps=tiles.warps
            )
        ctx.tiles = tiles
        ctx.save_for_backward(added, scale, joined if rectified else None)
        ctx.set_materialize_grads(False)
        return joined, means

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, of_means: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        added, scale, joined = ctx.saved_tensors
        grad = torch.zeros_like(added) if grad is None else grad
        tiles = ctx.tiles
        if torch.is_grad_enabled():  # This gradient's own gradient is wanted too.
            if of_means is not None:
                grad = grad + tiles.spread(of_means, grad.shape).to(grad.dtype)
            grad = grad if joined is None else grad * (joined > 0)
            factor = scale[:, None, None, None]
            return grad, grad * factor, (grad * added).flatten(1).sum(1), None
        grad = grad.contiguous(memory_format=tiles.layout)
        is_changed = joined is not None or of_means is not None
        of_x = tiles.empty(added) if is_changed else grad
        of_added = tiles.empty(added)
        images, parts, blocks = tiles.programs
        whole = scale.dtype if parts * blocks == 1 else torch.float32
        products = torch.empty(images, parts * blocks, dtype=whole, device=added.device)
        strides = (0, 0, 0) if of_means is None else of_means.stride()
        _add_scaled_backward[tiles.programs](
            grad, of_means, *strides, added, scale, joined, of_x, of_added, products, *tiles.sizes,
            joined is not None, of_means is not None, num_warps=tiles.warps,
        )  # fmt: skip
        of_scale = products[:, 0] if parts * blocks == 1 else products.sum(1).to(scale.dtype)
        return of_x, of_added, of_scale, None


class _Tiles(NamedTuple):
    """How programs share features ``(N, C, H, W)``: of an image, so many channels and positions.

    Attributes:
        programs: Images, parts of the positions, blocks of the channels.
        sizes: Channels and positions in all, whether channels are last in memory, and of one
            program, powers of two.
        warps: That a program runs on.
    """

    programs: tuple[int, int, int]
    sizes: tuple[int, int, bool, int, int]
    warps: int

    @classmethod
    def of(cls, x: Tensor) -> "_Tiles":
        images, channels, height, width = x.shape
        positions = height * width
        across = min(triton.next_power_of_2(channels), CHANNELS)
        along = min(triton.next_power_of_2(positions), TILE // across)
        programs = images, triton.cdiv(positions, along), triton.cdiv(channels, across)
        sizes = channels, positions, not x.is_contiguous(), across, along
        return cls(programs, sizes, max(4, min(16, across * along // 1024)))

    @property
    def layout(self) -> torch.memory_format:
        """Of the features in memory."""
        return torch.channels_last if self.sizes[2] else torch.contiguous_format

    def empty(self, like: Tensor) -> Tensor:
        """Return features to be written."""
        return torch.empty(
            like.shape, dtype=like.dtype, device=like.device, memory_format=self.layout
        )

    def spread(self, means: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of features from that of their parts' means."""
        _, positions, _, _, along = self.sizes
        each = means.repeat_interleave(along, 1)[:, :positions] / positions
        return each.transpose(1, 2).reshape(shape)


@triton.jit
def _place(channels, positions, IS_LAST: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr):
    position = tl.program_id(1) * ALONG + tl.arange(0, ALONG)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    if IS_LAST:
        within = position[:, None] * channels + channel[None, :]
    else:
        within = channel[None, :] * positions + position[:, None]
    there = (position < positions)[:, None] & (channel < channels)[None, :]
    return tl.program_id(0).to(tl.int64) * channels * positions + within, there, channel


@triton.jit
def _add_scaled(
    x, added, scale, joined, means, channels, positions, IS_LAST: tl.constexpr,
    ACROSS: tl.constexpr, ALONG: tl.constexpr, RECTIFIED: tl.constexpr,
):  # fmt: skip
    at, there, channel = _place(channels, positions, IS_LAST, ACROSS, ALONG)
    factor = tl.load(scale + tl.program_id(0)).to(tl.float32)
    total = tl.load(x + at, there, 0.0).to(tl.float32)
    total += factor * tl.load(added + at, there, 0.0).to(tl.float32)
    if RECTIFIED:
        total = tl.where(total < 0, 0.0, total)
    rounded = total.to(joined.dtype.element_ty)
    tl.store(joined + at, rounded, there)
    mean = tl.sum(tl.where(there, rounded.to(tl.float32), 0.0), 0) / positions
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(means + part * channels + channel, mean, channel < channels)


@triton.jit
def _add_scaled_backward(
    grad, of_means, of_image, of_part, of_channel, added, scale, joined, of_x, of_added, products,
    channels, positions, IS_LAST: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    RECTIFIED: tl.constexpr, HAS_MEANS: tl.constexpr,
):  # fmt: skip
    at, there, channel = _place(channels, positions, IS_LAST, ACROSS, ALONG)
    image, part = tl.program_id(0), tl.program_id(1)
    factor = tl.load(scale + image).to(tl.float32)
    value = tl.load(grad + at, there, 0.0).to(tl.float32)
    if HAS_MEANS:
        where = of_means + image * of_image + part * of_part + channel * of_channel
        value += (tl.load(where, channel < channels, 0.0) / positions)[None, :]
    if RECTIFIED:
        value = tl.where(tl.load(joined + at, there, 0.0) > 0, value, 0.0)
    if RECTIFIED or HAS_MEANS:
        tl.store(of_x + at, value.to(of_x.dtype.element_ty), there)
    tl.store(of_added + at, (factor * value).to(of_added.dtype.element_ty), there)
    product = tl.sum(tl.where(there, value * tl.load(added + at, there, 0.0).to(tl.float32), 0.0))
    number = (image * tl.num_programs(1) + part) * tl.num_programs(2) + tl.program_id(2)
    tl.store(products + number, product.to(products.dtype.element_ty))


class Pool(Function):
    """The channels' means over positions: of features, what ``AddScaled`` returns of its own.

    Its gradient is written out as large as the features, in their layout: others are added to it
    faster then than to one value a channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        tiles = ctx.tiles = _Tiles.of(x)
        images, parts, _ = tiles.programs
        means = torch.empty(images, parts, x.shape[1], dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            _pool[tiles.programs](x, means, *tiles.sizes, num_warps=tiles.warps)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return means

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        tiles = ctx.tiles
        if torch.is_grad_enabled():  # This gradient's own gradient is wanted too.
            spread: Tensor = tiles.spread(grad, ctx.shape).to(ctx.dtype)
            return spread
        of_x = torch.empty(
            ctx.shape, dtype=ctx.dtype, device=grad.device, memory_format=tiles.layout
        )
        _spread[tiles.programs](grad, *grad.stride(), of_x, *tiles.sizes, num_warps=tiles.warps)
        return of_x


@triton.jit
def _pool(
    x, means, channels, positions, IS_LAST: tl.constexpr, ACROSS: tl.constexpr,
    ALONG: tl.constexpr,
):  # fmt: skip
    at, there, channel = _place(channels, positions, IS_LAST, ACROSS, ALONG)
    mean = tl.sum(tl.load(x + at, there, 0.0).to(tl.float32), 0) / positions
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(means + part * channels + channel, mean, channel < channels)


@triton.jit
def _spread(
    grad, of_image, of_part, of_channel, of_x, channels, positions, IS_LAST: tl.constexpr,
    ACROSS: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    at, there, channel = _place(channels, positions, IS_LAST, ACROSS, ALONG)
    where = grad + tl.program_id(0) * of_image + tl.program_id(1) * of_part + channel * of_channel
    value = tl.load(where, channel < channels, 0.0) / positions
    values = tl.broadcast_to(value[None, :], (ALONG, ACROSS))
    tl.store(of_x + at, values.to(of_x.dtype.element_ty), there)


def fits(images: int, width: int) -> bool:
    """Whether one program can hold a gate's hidden values of a batch."""
    return bool(triton.next_power_of_2(images) * triton.next_power_of_2(width) <= MOST_HIDDEN)


class Decider(NamedTuple):
    """What a gate decides with besides its weights; numbers are scalar tensors."""

    norm: nn.BatchNorm1d
    by_batch: bool
    threshold: Tensor
    noise: Tensor
    temperature: Tensor


class Decide(Function):
    """From a gate's first products, ``(N, width)``, to its noisy decisions and logits, ``(N,)``.

    Bias, batch norm, ReLU, the second layer's difference, Gumbel noise, and the straight-through
    estimator: ``gates.Gate.forward`` in training, in one kernel each way.
    """

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, second: Tensor,
        second_bias: Tensor, exponentials: Tensor, by: Decider,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        images, width = products.shape
        scale, logit, margin = (products.new_empty(images) for _ in range(3))
        statistics = products.new_empty(2, width)
        norm = by.norm
        with torch.cuda.device_of(products):
            _decide[(1,)](
                products, bias, weight, shift, norm.running_mean, norm.running_var, second,
                second_bias, exponentials, by.threshold, by.noise, scale, logit, margin, statistics,
                images, width, norm.eps, norm.momentum, by.by_batch,
                triton.next_power_of_2(images), triton.next_power_of_2(width),
            )  # fmt: skip
        ctx.save_for_backward(
            products, bias, weight, shift, second, margin, statistics, by.temperature
        )
        ctx.by_batch = by.by_batch
        return scale, logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_scale: Tensor, of_logit: Tensor) -> tuple[Tensor | None, ...]:
        products, bias, weight, shift, second, margin, statistics, temperature = ctx.saved_tensors
        images, width = products.shape
        of_products = torch.empty_like(products)
        of_bias, of_weight, of_shift = (torch.empty_like(v) for v in (bias, weight, shift))
        of_second, of_second_bias = torch.empty_like(second), second.new_empty(2)
        _decide_backward[(1,)](
            of_scale.contiguous(), of_logit.contiguous(), products, bias, weight, shift, second,
            margin, statistics, temperature, of_products, of_bias, of_weight, of_shift, of_second,
            of_second_bias, images, width, ctx.by_batch,
            triton.next_power_of_2(images), triton.next_power_of_2(width),
        )  # fmt: skip
        return of_products, of_bias, of_weight, of_shift, of_second, of_second_bias, None, None


@triton.jit
def _decide(
    products, bias, weight, shift, running_mean, running_var, second, second_bias, exponentials,
    threshold, noise, scale, logit, margin, statistics, images, width, eps, momentum,
    BY_BATCH: tl.constexpr, IMAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    image, unit = tl.arange(0, IMAGES), tl.arange(0, WIDTH)
    is_image, is_unit = image < images, unit < width
    at, there = image[:, None] * width + unit[None, :], is_image[:, None] & is_unit[None, :]
    hidden = tl.load(products + at, there, 0.0) + tl.load(bias + unit, is_unit, 0.0)[None, :]
    old_mean = tl.load(running_mean + unit, is_unit, 0.0)
    old_var = tl.load(running_var + unit, is_unit, 1.0)
    if BY_BATCH:
        mean = tl.sum(tl.where(there, hidden, 0.0), 0) / images
        apart = tl.where(there, hidden - mean[None, :], 0.0)
        var = tl.sum(apart * apart, 0) / images
        unbiased = var * (images / (images - 1.0))
        new_mean = old_mean + momentum * (mean - old_mean)
        new_var = old_var + momentum * (unbiased - old_var)
        tl.store(running_mean + unit, new_mean, is_unit)
        tl.store(running_var + unit, new_var, is_unit)
    else:
        mean, var = old_mean, old_var
    inverse = 1.0 / tl.sqrt(var + eps)
    tl.store(statistics + unit, mean, is_unit)
    tl.store(statistics + width + unit, inverse, is_unit)
    factor = tl.load(weight + unit, is_unit, 0.0)
    normalized = (hidden - mean[None, :]) * inverse[None, :]
    active = normalized * factor[None, :] + tl.load(shift + unit, is_unit, 0.0)[None, :]
    active = tl.where(active < 0, 0.0, active)
    apart = tl.load(second + width + unit, is_unit, 0.0) - tl.load(second + unit, is_unit, 0.0)
    value = tl.sum(active * apart[None, :], 1) + tl.load(second_bias + 1) - tl.load(second_bias)
    skip = tl.load(exponentials + image, is_image, 1.0)
    execute = tl.load(exponentials + images + image, is_image, 1.0)
    drawn = tl.load(noise) * (tl.log(skip) - tl.log(execute))
    noisy = value - tl.load(threshold) + drawn
    tl.store(logit + image, value, is_image)
    tl.store(margin + image, noisy, is_image)
    tl.store(scale + image, tl.where(noisy > 0, 1.0, 0.0), is_image)


@triton.jit
def _decide_backward(
    of_scale, of_logit, products, bias, weight, shift, second, margin, statistics, temperature,
    of_products, of_bias, of_weight, of_shift, of_second, of_second_bias, images, width,
    BY_BATCH: tl.constexpr, IMAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    image, unit = tl.arange(0, IMAGES), tl.arange(0, WIDTH)
    is_image, is_unit = image < images, unit < width
    at, there = image[:, None] * width + unit[None, :], is_image[:, None] & is_unit[None, :]
    heat = tl.load(temperature)
    soft = 1.0 / (1.0 + tl.exp(-tl.load(margin + image, is_image, 0.0) / heat))
    value = tl.load(of_logit + image, is_image, 0.0)
    value += tl.load(of_scale + image, is_image, 0.0) * soft * (1.0 - soft) / heat
    hidden = tl.load(products + at, there, 0.0) + tl.load(bias + unit, is_unit, 0.0)[None, :]
    inverse = tl.load(statistics + width + unit, is_unit, 0.0)
    normalized = (hidden - tl.load(statistics + unit, is_unit, 0.0)[None, :]) * inverse[None, :]
    factor = tl.load(weight + unit, is_unit, 0.0)
    active = normalized * factor[None, :] + tl.load(shift + unit, is_unit, 0.0)[None, :]
    apart = tl.load(second + width + unit, is_unit, 0.0) - tl.load(second + unit, is_unit, 0.0)
    is_active = there & (active > 0)
    of_row = tl.sum(tl.where(is_active, active, 0.0) * value[:, None], 0)
    tl.store(of_second + unit, -of_row, is_unit)
    tl.store(of_second + width + unit, of_row, is_unit)
    of_both = tl.sum(value)
    tl.store(of_second_bias, -of_both)
    tl.store(of_second_bias + 1, of_both)
    of_active = tl.where(is_active, value[:, None] * apart[None, :], 0.0)
    by_unit = tl.sum(of_active, 0)
    by_normalized = tl.sum(of_active * normalized, 0)
    tl.store(of_shift + unit, by_unit, is_unit)
    tl.store(of_weight + unit, by_normalized, is_unit)
    if BY_BATCH:
        of_active -= by_unit[None, :] / images + normalized * by_normalized[None, :] / images
    result = tl.where(there, of_active * (factor * inverse)[None, :], 0.0)
    tl.store(of_products + at, result, there)
    tl.store(of_bias + unit, tl.sum(result, 0), is_unit)
