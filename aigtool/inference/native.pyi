import numpy as np
from numpy.typing import NDArray

def logits(
    features: int, images: int, positions: int, units: NDArray[np.float32], last_bias: float, /
) -> list[float]:
    """Return the logits of a folded gate, image by image.

    Args:
        features: Address of the gate's input in float32, ``(N, H, W, C)`` in memory: N x H x W x C
            numbers are read there.
        images: N.
        positions: H times W.
        units: A row a unit of the hidden layer: its bias, its weight in the last layer, and its
            weights of the channels, ``(width, 2 + C)``.
        last_bias: Of the last layer.
    """
