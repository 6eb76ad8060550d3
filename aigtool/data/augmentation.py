"""What is done at random to images in training."""

from dataclasses import dataclass

from aigtool.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image besides its crop; names and meanings are timm's.

    Attributes:
        hflip: Chance of a horizontal flip; 0.5, but 0 for digits.
        color_jitter: Share by which brightness, contrast and saturation change at most.
        aa: A policy of timm's AutoAugment instead of colour jitter, such as rand-m9-mstd0.5-inc1.
        reprob: Chance that a random rectangle is erased.

    Raises:
        UserError: A value is out of range.

    Example:
        >>> Augmentation(reprob=2.0)
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: reprob 2: expected 0 to 1
    """

    hflip: float | None = None
    color_jitter: float = 0.3
    aa: str | None = None
    reprob: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hflip", "color_jitter", "reprob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name.replace('_', ' ')} {value:g}: expected 0 to 1")


DEFAULT = Augmentation()
