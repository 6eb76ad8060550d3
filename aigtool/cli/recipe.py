"""The training recipe as options: a dataclass's fields, told once, in its docstring."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from aigtool.data.augmentation import Augmentation
from aigtool.training.config import FinetuneConfig

_ELSEWHERE = ("target_rate", "target_flops", "batch_size", "workers", "seed")
"""Options that commands spell out themselves."""
AUGMENTATIONS = tuple(field.name for field in fields(Augmentation))
CONTEXT = (
    *("model", "data", "dense", "data_dir", "download", "class_map", "limit", "val_fraction"),
    *AUGMENTATIONS,
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


def takes_recipe(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command with a parameter ``recipe`` an option for each field of the recipe.

    Args:
        without: Fields that it has no use for, which keep their defaults.

    Example:
        >>> @takes_recipe("targets")
        ... def train(recipe: Recipe) -> None:
        ...     print(recipe.training["lr"], recipe.augmentation["reprob"])
        >>> options = {name: p.default for name, p in inspect.signature(train).parameters.items()}
        >>> "noise_hold" in options, "targets" in options
        (True, False)
        >>> train(**options | {"lr": 0.5})
        0.5 0.0
    """
    training = _options(FinetuneConfig, without=(*_ELSEWHERE, *without))
    augmentation = _options(Augmentation)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            parts = [{name: given.pop(name) for name in part} for part in (training, augmentation)]
            command(**given, recipe=Recipe(*parts))

        own = inspect.signature(command, eval_str=True)
        kept = [parameter for name, parameter in own.parameters.items() if name != "recipe"]
        added = [*training.values(), *augmentation.values()]
        with_options.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*kept, *added]
        )
        with_options.__annotations__ = {p.name: p.annotation for p in [*kept, *added]}
        return with_options

    return decorate


def _options(kind: type, without: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    told, types = attribute_docs(kind), get_type_hints(kind)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[
                types[field.name],
                typer.Option(
                    f"--{field.name.replace('_', '-')}",
                    help=told[field.name],
                    rich_help_panel="Recipe",
                ),
            ],
        )
        for field in fields(kind)
        if field.name not in without
    }


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


def attribute_docs(kind: type) -> dict[str, str]:
    """Return what a class's docstring says about each of its attributes.

    Example:
        >>> attribute_docs(Augmentation)["reprob"]
        'Chance that a random rectangle is erased.'
    """
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    told: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        text = line.strip()
        if line.startswith(" " * 8):
            told[name] += f" {text}"
        else:
            name, _, text = text.partition(": ")
            told[name] = text
    return told


def as_kept(value: Any) -> Any:
    """Return what YAML keeps; a file or folder is found again from another folder."""
    is_path = isinstance(value, str) and value not in ("", "digits") and Path(value).exists()
    return str(Path(value).resolve()) if is_path or isinstance(value, Path) else value
