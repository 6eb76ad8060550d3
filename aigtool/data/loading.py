"""Images to batches: transforms and loaders."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from aigtool.data.images import ImageSet, Transform
from aigtool.errors import UserError
from aigtool.models.description import InputSpec

Batches = Iterable[tuple[Tensor, Tensor]]

SMALL = 64
"""Up to this side, training crops shift a padded image; above it, they take a random part."""


def eval_transform(spec: InputSpec) -> Transform:
    """Return timm's evaluation transform, ending in pixels 0..1 (the network normalises).

    Example:
        >>> from PIL import Image
        >>> pixels = eval_transform(InputSpec())(Image.new("RGB", (300, 400), "white"))
        >>> pixels.shape, pixels.max().item()
        (torch.Size([3, 224, 224]), 1.0)
    """
    transform = create_transform(
        input_size=spec.size,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        mean=_zeros(spec),
        std=_ones(spec),
    )
    return cast(Transform, transform)


def train_transform(
    spec: InputSpec, *, hflip: float = 0.5, scale: tuple[float, float] = (0.35, 1.0)
) -> Transform:
    """Return the training transform, ending in pixels 0..1.

    Args:
        spec: The network's input.
        hflip: Probability of a horizontal flip.
        scale: Share of the image that a random crop takes, for inputs above ``SMALL`` pixels.
            Smaller ones are padded by an eighth and cropped, as He et al. (2016) do on CIFAR.

    Returns:
        Image to pixels ``(3, H, W)``.
    """
    _, height, width = spec.size
    if max(height, width) > SMALL:
        transform = create_transform(
            input_size=spec.size,
            is_training=True,
            hflip=hflip,
            scale=scale,
            interpolation=spec.interpolation,
            mean=_zeros(spec),
            std=_ones(spec),
        )
        return cast(Transform, transform)
    steps = [
        transforms.Resize((height, width)),
        transforms.RandomCrop((height, width), padding=(width // 8, height // 8)),
        transforms.RandomHorizontalFlip(hflip),
        transforms.ToTensor(),
    ]
    return cast(Transform, transforms.Compose(steps))


def load_batches(
    images: ImageSet,
    *,
    batch_size: int = 128,
    workers: int = 0,
    shuffle_seed: int | None = None,
    pin_memory: bool = False,
) -> Batches:
    """Return a loader of ``(pixels (N, C, H, W), labels (N,))``.

    Args:
        images: What to load.
        batch_size: N; the last batch may be smaller.
        workers: Processes that read images; 0 reads in this one.
        shuffle_seed: Shuffle in the order that this seed gives; in the set's order by default.
        pin_memory: Whether batches lie in page-locked memory, for copies to a GPU.

    Raises:
        UserError: The batch size is under 1 or the number of workers under 0.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected a whole number of at least 1")
    if workers < 0:
        raise UserError(f"workers {workers}: expected a whole number of at least 0")
    generator = None
    if shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed)
    loader = DataLoader(
        images,
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        num_workers=workers,
        generator=generator,
        pin_memory=pin_memory,
    )
    return _without_worker_traces(loader)


def _without_worker_traces(loader: Iterable[Any]) -> Batches:
    """Yield batches; an error from a worker process says only what it said there."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2]) from error


def held_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Part positions into those kept and those held out, each class in proportion.

    Args:
        labels: Each image's label.
        fraction: The share to hold out.
        seed: Which part.

    Returns:
        Sorted positions kept, sorted positions held out; every class with two images or more has
        one in each.

    Raises:
        UserError: Nothing or everything would be held out.

    Example:
        >>> kept, out = held_out([0, 0, 0, 0, 1, 1, 1, 1], 0.25, seed=0)
        >>> len(kept), len(out)
        (6, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    out: list[int] = []
    for label in sorted(set(labels)):
        members = [position for position, own in enumerate(labels) if own == label]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        order = torch.randperm(len(members), generator=generator).tolist()
        out += [members[position] for position in order[:count]]
    if not 0 < fraction < 1 or not out:
        raise UserError(
            f"validation fraction {fraction} of {len(labels)} images holds out {len(out)}: "
            "expected a share above 0 and below 1 that leaves images on both sides"
        )
    kept = sorted(set(range(len(labels))) - set(out))
    return kept, sorted(out)


def _zeros(spec: InputSpec) -> tuple[float, ...]:
    return (0.0,) * spec.size[0]


def _ones(spec: InputSpec) -> tuple[float, ...]:
    return (1.0,) * spec.size[0]
