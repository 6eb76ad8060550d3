"""The training recipe as options."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aigtool.cli.grouping import OVERRIDES, Decorator, gathers, options_of
from aigtool.data.augmentation import Augmentation
from aigtool.training.config import FinetuneConfig

_ELSEWHERE = ("target_rate", "target_flops", "batch_size", "workers", "seed")
"""Options that commands spell out themselves."""
AUGMENTATIONS = tuple(field.name for field in fields(Augmentation))
_PATHS = ("model", "data", "dense", "data_dir", "class_map")
CONTEXT = (
    *(*_PATHS, "download", "limit", "val_fraction"),
    *AUGMENTATIONS,
    *OVERRIDES,
)
"""Options besides the recipe's that a run's ``config.yaml`` keeps."""


@dataclass(frozen=True)
class Recipe:
    """What the options of the recipe said, by name of a field.

    Attributes:
        training: Of ``FinetuneConfig``.
        augmentation: Of ``Augmentation``.
    """

    training: dict[str, Any]
    augmentation: dict[str, Any]


def takes_recipe(*without: str) -> Decorator:
    """Give a command with a parameter ``recipe`` an option for each field of the recipe.

    Args:
        without: Fields that it has no use for, which keep their defaults.

    Example:
        >>> import inspect
        >>> @takes_recipe("targets")
        ... def train(recipe: Recipe) -> None:
        ...     print(recipe.training["lr"], recipe.augmentation["reprob"])
        >>> options = {name: p.default for name, p in inspect.signature(train).parameters.items()}
        >>> "noise_hold" in options, "targets" in options
        (True, False)
        >>> train(**options | {"lr": 0.5})
        0.5 0.0
    """
    training = options_of(FinetuneConfig, "Recipe", (*_ELSEWHERE, *without))
    augmentation = options_of(Augmentation, "Recipe")

    def made(**given: Any) -> Recipe:
        return Recipe(*({name: given[name] for name in part} for part in (training, augmentation)))

    return gathers("recipe", training | augmentation, made)


def read_recipe(settings: Mapping[str, Any]) -> tuple[FinetuneConfig, Augmentation]:
    """Read the recipe out of a command's settings.

    Raises:
        UserError: A value is out of range.

    Example:
        >>> settings = vars(FinetuneConfig(lr=0.5)) | vars(Augmentation()) | {"model": "r56"}
        >>> read_recipe(settings)[0].lr
        0.5
    """
    options = {f.name: settings[f.name] for f in fields(FinetuneConfig) if f.name in settings}
    return FinetuneConfig(**options), Augmentation(**{n: settings[n] for n in AUGMENTATIONS})


def as_kept(name: str, value: Any) -> Any:
    """Return what YAML keeps of an option; a file or folder is found again from another folder.

    Example:
        >>> as_kept("data", ".") == str(Path.cwd()), as_kept("crop_mode", ".")
        (True, '.')
    """
    is_text = isinstance(value, str) and value not in ("", "digits")
    is_path = name in _PATHS and is_text and Path(value).exists()
    return str(Path(value).resolve()) if is_path or isinstance(value, Path) else value
