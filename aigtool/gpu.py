"""How a GPU is kept busy in training, where each small kernel leaves it all but idle."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
Result = TypeVar("Result")

_HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_unobserved: ContextVar[bool] = ContextVar("unobserved", default=False)


def aside(
    device: torch.device, compute: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    """Compute on a second stream of a GPU, beside what comes after.

    Autograd runs backwards on the streams of the way there, so its gradient is computed beside
    others as well. On other devices, and where no gradient is wanted, it is just called.

    Example:
        >>> doubled = aside(torch.device("cpu"), torch.mul, torch.ones(3), 2)
        >>> rejoin(doubled.device)
        >>> doubled
        tensor([2., 2., 2.])
    """
    if not _has_second(device):
        return compute(*args, **kwargs)
    here = torch.cuda.current_stream(device)
    there = _second(here)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        return compute(*args, **kwargs)


def rejoin(device: torch.device) -> None:
    """Let what comes after wait for what is computed ``aside``."""
    if _has_second(device):
        here = torch.cuda.current_stream(device)
        here.wait_stream(_second(here))


def reads_here(x: Tensor) -> None:
    """Keep a tensor's memory until the current stream has read it, whichever it was computed on."""
    if _has_second(x.device):
        x.record_stream(torch.cuda.current_stream(x.device))


@contextmanager
def unobserved() -> Iterator[None]:
    """Say that, within, only the network reads features, and asks for no gradient of them.

    What layers would compute may then be computed without them, and a gradient pass features by.
    """
    token = _unobserved.set(True)
    try:
        yield
    finally:
        _unobserved.reset(token)


def is_unobserved(*layers: nn.Module) -> bool:
    """Whether ``unobserved`` was said, and no hook is on any of some layers.

    Example:
        >>> layer = nn.ReLU()
        >>> with unobserved():
        ...     is_unobserved(layer)
        True
        >>> is_unobserved(layer)
        False
    """
    return _unobserved.get() and not any(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        for layer in layers
    )


def suits_kernels(x: Tensor) -> bool:
    """Whether features lie where, and as, those of ``aigtool.kernels`` take them.

    Triton compiles these at first use, on NVIDIA's and AMD's GPUs, with a C compiler's help.

    Args:
        x: ``(N, C, H, W)``; others do not suit.

    Example:
        >>> suits_kernels(torch.zeros(1, 3, 4, 4))
        False
    """
    if x.device.type != "cuda" or torch.compiler.is_compiling() or x.ndim != 4:
        return False
    if x.dtype not in _HALF_OR_SINGLE or x.numel() == 0 or not _compiles(x.device, x.dtype):
        return False
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _has_second(device: torch.device) -> bool:
    return device.type == "cuda" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


@cache
def _second(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    return torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]


@cache
def _compiles(device: torch.device, dtype: torch.dtype) -> bool:
    least = (8, 0) if dtype == torch.bfloat16 else (7, 0)
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < least:
        return False
    try:
        from aigtool.kernels import Pool

        Pool.apply(torch.zeros(1, 1, 1, 1, dtype=dtype, device=device))
    except torch.OutOfMemoryError:
        raise
    # A compiler, its headers or a driver may be missing, each told in another way.
    except Exception as error:
        problem = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        warnings.warn(
            f"Triton cannot compile for {device}, so training steps take longer: {problem[0]}",
            stacklevel=2,
        )
        return False
    return True
