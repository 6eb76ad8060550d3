"""Options of a command that are a dataclass's fields, told once, in its docstring."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from aigtool.models.override import InputOverride

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def gathers(
    parameter: str, options: Mapping[str, inspect.Parameter], make: Callable[..., Any]
) -> Decorator:
    """Give a command several options in place of a parameter.

    Args:
        parameter: Of the command.
        options: What the command line takes instead, by name.
        make: Called with what was given by name; the parameter's value.

    Example:
        >>> @gathers("override", options_of(InputOverride, "Data"), InputOverride)
        ... def show(override: InputOverride) -> None:
        ...     print(override.given)
        >>> show(**dict.fromkeys(inspect.signature(show).parameters) | {"crop_pct": 0.9})
        {'crop_pct': 0.9}
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            made = make(**{name: given.pop(name) for name in options})
            command(**given, **{parameter: made})

        own = inspect.signature(command, eval_str=True)
        kept = [other for name, other in own.parameters.items() if name != parameter]
        signature = own.replace(parameters=[*kept, *options.values()])
        with_options.__signature__ = signature  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return with_options

    return decorate


def options_of(
    kind: type, panel: str, without: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """Return an option for each field of a dataclass, by name.

    Args:
        kind: Its docstring tells of each field under ``Attributes:``.
        panel: Of the help.
        without: Fields to leave out.

    Example:
        >>> [*options_of(InputOverride, "Data", ("mean", "std"))]
        ['img_size', 'crop_pct', 'crop_mode', 'interpolation']
    """
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
                    rich_help_panel=panel,
                ),
            ],
        )
        for field in fields(kind)
        if field.name not in without
    }


def attribute_docs(kind: type) -> dict[str, str]:
    """Return what a class's docstring says about each of its attributes.

    Example:
        >>> attribute_docs(InputOverride)["interpolation"]
        'Filter that resizes.'
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


_OVERRIDES = options_of(InputOverride, "Data", ("mean", "std"))
OVERRIDES = tuple(_OVERRIDES)
takes_override = gathers("override", _OVERRIDES, InputOverride)
"""Gives a command with a parameter ``override`` options for images of another size and crop."""
_SIZE = {"img_size": _OVERRIDES["img_size"]}
takes_size = gathers("override", _SIZE, InputOverride)
"""Does so for the size alone."""
takes_input = gathers("override", options_of(InputOverride, "Input"), InputOverride)
"""Does so for all that is known of the input."""
