"""What a user says of a network's input in place of its model file."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aigtool.errors import UserError

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]


@dataclass(frozen=True)
class InputOverride:
    """How an image becomes the input, where that is to be otherwise; None leaves it as it is.

    Attributes:
        img_size: Side of the square that the network sees, in pixels; this and the like are by
            default as the model file says, or as the network was published.
        crop_pct: Share of the resized image's side that the crop keeps, above 0 and at most 1;
            above 64 pixels, training crops are random.
        crop_mode: How an image becomes square: center cuts it, squash changes its proportions,
            border fills it up.
        interpolation: Filter that resizes.
        mean: Of red, green and blue in 0..1, subtracted from pixels.
        std: Of red, green and blue in 0..1, divided by.

    Raises:
        UserError: A value is out of range.

    Example:
        >>> InputOverride(img_size=288, crop_pct=1.0).given
        {'img_size': 288, 'crop_pct': 1.0}
    """

    img_size: int | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, known in (("crop_mode", CropMode), ("interpolation", Interpolation)):
            if (value := getattr(self, name)) is not None and value not in get_args(known):
                raise UserError(
                    f"{name.replace('_', '-')} {value!r}: expected one of "
                    f"{', '.join(get_args(known))}"
                )
        if self.img_size is not None and self.img_size < 1:
            raise UserError(f"img-size {self.img_size}: expected a side in pixels, such as 224")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UserError(f"crop-pct {self.crop_pct}: expected a share above 0 and at most 1")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise UserError(f"mean {_told(self.mean)}: expected numbers from 0 to 1")
        if self.std is not None and not all(0 < value <= 1 for value in self.std):
            raise UserError(f"std {_told(self.std)}: expected numbers above 0 and at most 1")

    @property
    def given(self) -> dict[str, Any]:
        """What is said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


AS_IT_IS = InputOverride()


def _told(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
