"""What is done at random to images in training."""

from dataclasses import dataclass, replace

from aigtool.errors import UserError

HFLIP, AA = 0.5, "rand-m2-n2-inc1"
"""What is done to photographs where nothing is given."""
NO_POLICY = "none"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image besides its crop; names and meanings are timm's.

    Attributes:
        hflip: Chance of a horizontal flip; 0.5, but 0 for digits.
        color_jitter: Share by which brightness, contrast and saturation change at most, instead of
            a policy.
        aa: A policy of timm's AutoAugment, such as rand-m9-mstd0.5-inc1, or none; rand-m2-n2-inc1,
            but none for digits and where there is colour jitter.
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
    color_jitter: float = 0.0
    aa: str | None = None
    reprob: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hflip", "color_jitter", "reprob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name.replace('_', ' ')} {value:g}: expected 0 to 1")
        if self.color_jitter and self.aa not in (None, NO_POLICY):
            raise UserError(
                f"color jitter {self.color_jitter:g} and aa {self.aa}: expected one of them; "
                "a policy changes colours itself"
            )

    def completed(self, are_photographs: bool) -> "Augmentation":
        """Return these changes with what holds where nothing is given.

        Args:
            are_photographs: Whether a mirrored image shows the same, as no digit does.

        Example:
            >>> Augmentation(color_jitter=0.4).completed(are_photographs=True)
            Augmentation(hflip=0.5, color_jitter=0.4, aa='none', reprob=0.0)
        """
        hflip = HFLIP * are_photographs if self.hflip is None else self.hflip
        aa = AA if are_photographs and not self.color_jitter else NO_POLICY
        return replace(self, hflip=hflip, aa=self.aa or aa)


DEFAULT = Augmentation()
