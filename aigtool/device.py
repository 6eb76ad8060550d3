"""Where to compute, and in which layout."""

from typing import TypeVar

import torch
from torch import nn

from aigtool.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def to_channels_last(network: Network) -> Network:
    """Lay the weights of two-dimensional convolutions out channels-last, in place.

    ``network.to(memory_format=...)`` fails where there is a three-dimensional one too.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(1, 2, 3))
        >>> to_channels_last(layers)[0].weight.stride()
        (27, 1, 9, 3)
    """
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given, so that a clock tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def find_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: The name is none of these, or there is no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r}: {torch.cuda.device_count()} CUDA GPUs are usable here; "
            "use --device cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps': there is none here; use --device cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device
