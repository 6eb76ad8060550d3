"""Training and evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a network in training or evaluation mode; each module then goes back to its own.

    Example:
        >>> network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())
        >>> with in_mode(network, training=False):
        ...     inside = network.training
        >>> inside, network[0].training, network[1].training
        (False, True, False)
    """
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
