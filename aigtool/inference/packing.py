"""Convolutions that keep their weights as oneDNN computes with them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CAN_PACK = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")
    and hasattr(torch.ops.aten, "mkldnn_reorder_conv2d_weight")
)
"""The operators are those that ``torch.compile`` uses, and are not promised to users."""

FEW_POSITIONS = 2**12
"""Most of a batch of features for which laying a weight out takes a share worth sparing."""


class _Packed(NamedTuple):
    """A weight laid out, which weight that was, how it lies, and what shapes of inputs ask so."""

    weight: Tensor
    stamp: tuple[int, int]
    layout: bytes
    suits: dict[torch.Size, bool]


_Geometry = tuple[Any, Any, Any, int]
"""Padding, stride, dilation and groups."""


class PackedConvolution(nn.Conv2d):
    """A convolution that lays its weight out once, where PyTorch does so in each call.

    Of one image with small features that takes up to half of a convolution's time, of many images
    with large ones next to nothing: these are left to PyTorch. The layout that oneDNN asks for may
    change with the number of images and their size, and one is slowly brought into another: kept is
    the one for the input that was seen first, for all that ask for the same. What cannot be packed
    is left to PyTorch, too (another type or device, gradients wanted, autocast or a compiler at
    work, operators missing).

    Args:
        convolution: Its parameters are shared.

    Example:
        >>> convolution, x = nn.Conv2d(8, 8, 3).eval(), torch.randn(1, 8, 7, 7)
        >>> with torch.inference_mode():
        ...     print(torch.allclose(PackedConvolution(convolution)(x), convolution(x), atol=1e-5))
        True
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        plain = convolution
        super().__init__(
            *(plain.in_channels, plain.out_channels, plain.kernel_size),  # type: ignore[arg-type]
            *(plain.stride, plain.padding, plain.dilation, plain.groups),  # type: ignore[arg-type]
            bias=False,
            device="meta",
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.train(plain.training)
        self._packed: _Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``."""
        if not self._can_pack(x):
            return super().forward(x)
        packed, stamp = self._packed, self._stamp()
        if packed is None or packed.stamp != stamp:
            weight = _laid_out(self.weight.detach(), self._geometry(), x.shape)
            packed = self._packed = _Packed(weight, stamp, self._layout(x.shape), {x.shape: True})
        suits = packed.suits.get(x.shape)
        if suits is None:
            suits = packed.suits[x.shape] = packed.layout == self._layout(x.shape)
        if not suits:
            return super().forward(x)
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, packed.weight, self.bias, *self._geometry(), "none", [], ""
        )

    def _can_pack(self, x: Tensor) -> bool:
        return (
            _CAN_PACK
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.ndim == 4
            and x.shape[1] == self.in_channels
            and 0 < len(x) * x.shape[2] * x.shape[3] <= FEW_POSITIONS
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def _stamp(self) -> tuple[int, int]:
        """Return what changes when the weight is replaced, or written to outside inference mode."""
        weight = self.weight
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def _geometry(self) -> _Geometry:
        return self.padding, self.stride, self.dilation, self.groups

    def _layout(self, shape: torch.Size) -> bytes:
        return _layout_for(self.weight.shape, self._geometry(), shape, torch.get_num_threads())

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load its part of a state, as ``nn.Module`` does."""
        super()._load_from_state_dict(*args)
        self._packed = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedConvolution":
        """Move or convert it, as ``nn.Module`` does."""
        self._packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": None}


@lru_cache(maxsize=2**12)
def _layout_for(weight: torch.Size, geometry: _Geometry, shape: torch.Size, _threads: int) -> bytes:
    """Describe the layout that a weight should have for inputs of a shape."""
    of_that_shape = torch.zeros(weight, dtype=torch.float32, device="cpu")
    laid_out = _laid_out(of_that_shape, geometry, shape)
    described: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(laid_out)
    return bytes(described.tolist())


def _laid_out(weight: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
    laid_out: Tensor = torch.ops.aten.mkldnn_reorder_conv2d_weight(
        weight.to_mkldnn(), *geometry, list(shape)
    )
    return laid_out


def pack_convolutions(network: nn.Module) -> None:
    """Let the plain convolutions of a network keep packed weights, in place."""
    for name, module in list(network.named_modules()):
        is_plain = type(module) is nn.Conv2d and module.padding_mode == "zeros"
        if is_plain and not isinstance(module.padding, str):
            network.set_submodule(name, PackedConvolution(module))
