"""The embedded data set: scikit-learn's 1,797 real handwritten digits, 8x8 pixels, 16 greys.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = tuple("0123456789")
SIDE = 32
SPLITS = ("train", "val", "test")


def split_indices(split: str) -> list[int]:
    """Return the indices of a split: train 1,257, val 180, test 360, each class in proportion.

    Example:
        >>> [len(split_indices(split)) for split in SPLITS]
        [1257, 180, 360]
    """
    labels = load_digits().target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
    chosen: list[int] = sorted({"train": train, "val": val, "test": test}[split].tolist())
    return chosen


def load_split(split: str) -> tuple[list[Image.Image], list[int], list[str]]:
    """Return a split's images (RGB, 32x32), labels and names.

    Example:
        >>> images, labels, names = load_split("val")
        >>> images[0].size, len(labels), names[0][:7]
        ((32, 32), 180, 'digits/')
    """
    digits = load_digits()
    indices = split_indices(split)
    images = [
        Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
        .resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        .convert("RGB")
        for index in indices
    ]
    return images, [int(digits.target[i]) for i in indices], [f"digits/{i:05d}" for i in indices]
