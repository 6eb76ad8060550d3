"""Images to batches: transforms and loaders."""

import os
import signal
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, cast

import torch
from PIL.Image import Image, Resampling
from PIL.ImageOps import posterize
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from aigtool.data.augmentation import DEFAULT, NO_POLICY, Augmentation
from aigtool.data.images import ImageSet, Transform
from aigtool.data.seeding import seeded
from aigtool.errors import UserError
from aigtool.models.description import InputSpec

_MOVING = {Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC}
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
    spec: InputSpec,
    augmentation: Augmentation = DEFAULT,
    *,
    scale: tuple[float, float] = (0.35, 1.0),
) -> Transform:
    """Return the training transform, ending in pixels 0..1.

    Args:
        spec: The network's input.
        augmentation: What is done besides the crop; what is not given, as for photographs.
        scale: Share of the image that a random crop takes, for inputs above ``SMALL`` pixels.
            Smaller ones are resized as for evaluation, padded by an eighth and cropped, as He et
            al. (2016) do on CIFAR.

    Returns:
        Image to pixels ``(3, H, W)``.

    Raises:
        UserError: timm does not know the AutoAugment policy.
    """
    augmentation = augmentation.completed(are_photographs=True)
    hflip = cast(float, augmentation.hflip)
    try:
        crop, change, finish = create_transform(
            input_size=spec.size,
            is_training=True,
            hflip=hflip,
            scale=scale,
            color_jitter=augmentation.color_jitter,
            auto_augment=None if augmentation.aa == NO_POLICY else augmentation.aa,
            re_prob=augmentation.reprob,
            interpolation=spec.interpolation,
            mean=_zeros(spec),
            std=_ones(spec),
            separate=True,
        )
    # timm reads a policy with assertions, float() and look-ups.
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"aa {augmentation.aa!r} cannot be made ({error!r}): expected a policy that timm "
            "knows, such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or original"
        ) from error
    for policy in change.transforms:
        for op in getattr(policy, "ops", None) or chain(*getattr(policy, "policy", ())):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
            # Pillow turns and shears by these alone.
            if op.kwargs["resample"] in set(Resampling) - _MOVING:
                op.kwargs["resample"] = Resampling.BICUBIC
    _, height, width = spec.size
    if max(height, width) <= SMALL:
        plain = cast(transforms.Compose, eval_transform(spec))
        crop = transforms.Compose(
            [
                *plain.transforms[:-2],  # but for making a tensor of it
                transforms.RandomCrop((height, width), padding=(width // 8, height // 8)),
                transforms.RandomHorizontalFlip(hflip),
            ]
        )
    return cast(Transform, transforms.Compose([crop, change, finish]))


def _posterize(image: Image, bits: int, **_: object) -> Image:
    """Keep the highest bits, at least one: timm's strongest asks for none, which Pillow refuses."""
    return posterize(image, max(1, bits))


def load_batches(
    images: ImageSet,
    *,
    batch_size: int = 128,
    workers: int | None = 0,
    shuffle_seed: int | None = None,
    repeats: int = 1,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> "Batches":
    """Return a loader of ``(pixels (N, C, H, W), labels (N,))``.

    Args:
        images: What to load.
        batch_size: N; the last batch may be smaller.
        workers: Processes that read images; 0 reads in this one; None lets ``spare_workers`` say.
        shuffle_seed: Shuffle in the order that this seed gives, which seeds each image's transform
            too, so that the batches are the same whoever reads them; in the set's order by default.
        repeats: Times a shuffled batch holds each of its images, each with a random transform of
            its own (batch augmentation, Hoffer et al., CVPR 2020): of as many fewer images.
            They lie apart, since mixup and CutMix mix neighbours.
        start: Shuffled batches to leave out, unread.
        part: ``(k, n)``: of each shuffled batch the k-th of n parts, with as many images in each;
            the batch size is that of all together, and up to n - 1 images an epoch are left out.
        pin_memory: Whether batches lie in page-locked memory, for copies to a GPU.

    Raises:
        UserError: The batch size is under 1 or the number of workers under 0.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected a whole number of at least 1")
    if repeats < 1:
        raise UserError(f"repeats {repeats}: expected a whole number of at least 1")
    if workers is None:
        workers = spare_workers()
    if workers < 0:
        raise UserError(f"workers {workers}: expected a whole number of at least 0")
    # A generator of its own, lest a loader draw from the one that gates draw from.
    options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "generator": torch.Generator(),
        "worker_init_fn": _ignore_interrupts,
    }
    if shuffle_seed is None:
        return Batches(DataLoader(images, batch_size=batch_size, **options))
    generator = torch.Generator().manual_seed(shuffle_seed)
    sampler = _ShuffledBatches(len(images), batch_size, repeats, generator, start=start, part=part)
    seeded_images = _SeededImages(images, shuffle_seed)
    return Batches(DataLoader(seeded_images, batch_sampler=sampler, **options))


def spare_workers() -> int:
    """Return how many processes can read images beside a network, two at most.

    On a CPU they take their time from the network, whose threads wait for one another: on two cores
    it is faster to read first.

    Example:
        >>> 0 <= spare_workers() <= 2
        True
    """
    if torch.accelerator.is_available():
        return 2
    return max(0, min(2, (os.cpu_count() or 1) - 2))


def _ignore_interrupts(_worker: int) -> None:
    """Leave Ctrl-C to the main process, which may have a step to finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Batches:
    """Batches of a loader; an error from a worker process says only what it said there."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self.loader
        except UserError as error:
            raise UserError(str(error).rpartition("UserError: ")[2]) from error


class _SeededImages(Dataset[tuple[Tensor, int]]):
    """Images whose random transforms depend on a seed and the position alone.

    A position past the last image is that image again, with another transform.
    """

    def __init__(self, images: ImageSet, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with seeded(self.seed, index):
            return self.images[index % len(self.images)]


class _ShuffledBatches(Sampler[list[int]]):
    """Shuffled batches; a last one of one image, which a norm may refuse, joins the one before."""

    def __init__(
        self,
        images: int,
        batch_size: int,
        repeats: int,
        generator: torch.Generator,
        *,
        start: int,
        part: tuple[int, int],
    ) -> None:
        self.images, self.batch_size, self.repeats = images, batch_size, repeats
        self.generator, self.start, self.part = generator, start, part

    def __len__(self) -> int:
        _, parts = self.part
        return count_batches(self.images, self.batch_size, self.repeats, parts) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        own, parts = self.part
        order = torch.randperm(self.images, generator=self.generator).tolist()
        starts = range(0, self.images, _images_a_batch(self.batch_size, self.repeats))
        count = count_batches(self.images, self.batch_size, self.repeats, parts)
        ends = [*starts[:count], self.images - self.images % parts]
        for start, end in list(pairwise(ends))[self.start :]:
            mine = order[start:end][own::parts]
            yield [i + t * self.images for t in range(self.repeats) for i in mine]


def count_batches(images: int, batch_size: int, repeats: int = 1, parts: int = 1) -> int:
    """Return how many shuffled batches there are, each in some parts of as many images.

    A last one with one image a part joins the one before.

    Example:
        >>> [count_batches(images, 4) for images in (1, 4, 5, 6, 8)]
        [1, 1, 1, 2, 2]
        >>> [count_batches(8, batch_size, repeats=2) for batch_size in (1, 4, 5)]
        [8, 4, 4]
        >>> [count_batches(images, 4, parts=2) for images in (1, 3, 7, 8, 11)]
        [0, 1, 1, 2, 2]
    """
    whole, rest = divmod(images - images % parts, _images_a_batch(batch_size, repeats))
    return whole + (rest > parts or (rest == parts and whole == 0))


def _images_a_batch(batch_size: int, repeats: int) -> int:
    return max(1, batch_size // repeats)


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
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    out: list[int] = []
    for _, members in sorted(by_label.items()):
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
