"""Images to train on and images to choose the best epoch by."""

from dataclasses import dataclass
from pathlib import Path

from aigtool.data.augmentation import DEFAULT, Augmentation
from aigtool.data.images import DIGITS, DataSource, ImageSet, has_split, open_images
from aigtool.data.loading import eval_transform, held_out, train_transform
from aigtool.errors import UserError
from aigtool.models.description import Description


@dataclass(frozen=True)
class TrainingImages:
    """Training and validation images.

    Attributes:
        train: With the training transform.
        val: With the evaluation transform.
        held_out: Whether ``val`` was taken out of the training images, which the network's
            weights may have seen.
    """

    train: ImageSet
    val: ImageSet
    held_out: bool


def open_training_images(
    description: Description,
    source: DataSource,
    *,
    val_fraction: float = 0.1,
    augmentation: Augmentation = DEFAULT,
) -> TrainingImages:
    """Open ``train/`` and ``val/``; where there is no ``val/``, take a part out of ``train/``.

    A folder that has class folders and no splits is all for training. The part taken out is the
    same in every run, so that runs with several seeds are judged by the same images.

    Args:
        description: Of the network to train.
        source: Where the images are.
        val_fraction: The share to take out, each class in proportion.
        augmentation: What is done at random to training images.

    Raises:
        UserError: The images cannot be opened or are not the network's classes.

    Example:
        >>> from aigtool.models.description import InputSpec
        >>> description = Description("", 10, input=InputSpec(size=(3, 32, 32)))
        >>> images = open_training_images(description, DataSource("digits"))
        >>> len(images.train), len(images.val), images.held_out
        (1257, 180, False)
    """
    if not 0 < val_fraction < 1:
        raise UserError(
            f"validation fraction {val_fraction:g}: expected a share above 0 and below 1"
        )
    augmentation = augmentation.completed(are_photographs=source.name != DIGITS)
    training = train_transform(description.input, augmentation)
    plain = eval_transform(description.input)
    names = description.class_names
    train = open_images(source, _training_split(source), training, names)
    train.check_classes(description.num_classes)
    if has_split(source, "val"):
        val = open_images(source, "val", plain, names or train.classes)
        val.check_classes(description.num_classes)
        return TrainingImages(train, val, held_out=False)
    if train.labels is None:
        raise UserError(
            f"data set {source.name!r} does not list its labels, so no validation part can be "
            "taken out of it: unpack it into a folder a class, with train/ and val/"
        )
    kept, out = held_out([train.labels[i] for i in train.indices], val_fraction, seed=0)
    return TrainingImages(train.take(kept), train.take(out, plain), held_out=True)


def _training_split(source: DataSource) -> str:
    """Return ``train``, or ``""`` for a folder that has class folders and no splits."""
    folder = Path(source.name).is_dir() and source.name != DIGITS
    parted = any(has_split(source, split) for split in ("train", "val", "test"))
    return "" if folder and not parted else "train"
