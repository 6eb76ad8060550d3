"""How a GPU is kept busy in training, where each small kernel leaves it all but idle."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Launch what is within on a second stream of a GPU, to be done beside what comes after.

    Autograd runs backwards on the streams of the way there, so its gradient is computed beside
    others as well. On other devices, and where no gradient is wanted, it does nothing.

    Example:
        >>> with aside(torch.device("cpu")):
        ...     doubled = 2 * torch.ones(3)
        >>> rejoin(doubled.device)
        >>> doubled
        tensor([2., 2., 2.])
    """
    if not _has_second(device):
        yield
        return
    here = torch.cuda.current_stream(device)
    there = _second(here)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        yield


def rejoin(device: torch.device) -> None:
    """Let what comes after wait for what was launched ``aside``."""
    if _has_second(device):
        here = torch.cuda.current_stream(device)
        here.wait_stream(_second(here))


def reads_here(x: Tensor) -> None:
    """Keep a tensor's memory until the current stream has read it, whichever it was computed on."""
    if _has_second(x.device):
        x.record_stream(torch.cuda.current_stream(x.device))


def suits_kernels(x: Tensor) -> bool:
    """Whether features lie where, and as, those of ``aigtool.kernels`` take them.

    Triton compiles them at first use, on NVIDIA's and AMD's GPUs, with a C compiler's help.

    Args:
        x: ``(N, C, H, W)``; others do not suit.

    Example:
        >>> suits_kernels(torch.zeros(1, 3, 4, 4))
        False
    """
    if x.device.type != "cuda" or torch.compiler.is_compiling() or not _compiles(x.device):
        return False
    return x.ndim == 4 and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


def _has_second(device: torch.device) -> bool:
    is_eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return device.type == "cuda" and is_eager


@cache
def _second(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    return torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]


@cache
def _compiles(device: torch.device) -> bool:
    has_compiler = any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang")))
    is_known = torch.cuda.get_device_capability(device) >= (7, 0)
    return has_compiler and is_known and find_spec("triton") is not None
