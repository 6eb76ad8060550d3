"""Options that several commands share, named as timm names them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from aigtool.cli.console import Settings
from aigtool.errors import UserError
from aigtool.launch import place

if TYPE_CHECKING:
    from aigtool.budget import Budget

Name = TypeVar("Name", bound=str)

Policy = Literal["argmax", "sampled", "open", "closed", "expected"]
"""As in ``aigtool.gates``, which imports torch."""


def _quiet(value: bool) -> bool:
    Settings.quiet = value or place()[0] > 0
    return value


def _debug(value: bool) -> bool:
    Settings.debug = value
    return value


ModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Model file that convert or finetune wrote."),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FOLDER|digits|NAME",
        help="A folder with a folder a class (perhaps under train/, val/, test/); 'digits', the "
        "embedded data set; or a timm data set name such as torch/cifar10.",
        rich_help_panel="Data",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where a timm data set given by name lies, or shards (wds/NAME).",
        rich_help_panel="Data",
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Download a timm data set given by name.", rich_help_panel="Data"
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        help="timm's class map: folder names in the order of the network's outputs, one a line.",
        rich_help_panel="Data",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Which part of the data; by default test/, else val/, else the folder itself.",
        rich_help_panel="Data",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        help="Take N images, spread evenly over the data.",
        rich_help_panel="Data",
    ),
]
TrainLimit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        help="Train on N images, spread evenly over the data; all validate.",
        rich_help_panel="Data",
    ),
]
ValFraction = Annotated[
    float,
    typer.Option(
        "--val-fraction",
        help="Share of train/ to validate on where the data has no val/.",
        rich_help_panel="Data",
    ),
]
Dense = Annotated[
    Path | None,
    typer.Option(
        "--dense",
        metavar="FILE",
        help="The network before gating, to compare with and, in training, to learn from; by "
        "default dense.safetensors beside MODEL, else MODEL itself with open gates.",
    ),
]
PolicyOption = Annotated[
    Policy | None,
    typer.Option("--policy", help="Gate policy; by default the model file's, which is argmax."),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel="Running"),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", "-b", min=1, help="Images a batch.", rich_help_panel="Running"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=0,
        help="Processes that read images; by default two, or what a network on the CPU leaves.",
        rich_help_panel="Running",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Of everything random.", rich_help_panel="Running"
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an output that exists.", rich_help_panel="Output"),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout, all else on stderr.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", callback=_quiet, help="No progress and no notes.", rich_help_panel="Output"
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_debug,
        help="Show where an error came from.",
        rich_help_panel="Output",
    ),
]


def parse_epsilons(option: str, text: str) -> list[float]:
    """Read epsilons such as ``0,2/255,0.03``; each attack says which it takes.

    Raises:
        UserError: One is no number of at least 0.

    Example:
        >>> parse_epsilons("epsilon", "0,51/255")
        [0.0, 0.2]
    """
    return [_epsilon(option, part.strip()) for part in text.split(",")]


def _epsilon(option: str, text: str) -> float:
    over, slash, under = text.partition("/")
    try:
        value = float(over) / float(under) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(
            f"{option} {text!r}: expected numbers of at least 0 with commas between, such as "
            "0,2/255,8/255"
        )
    return value


def parse_budgets(rates: str | None, flops: str | None) -> "list[Budget]":
    """Read budgets such as ``0.5,0.6`` of one of the units.

    Raises:
        UserError: Both or neither are given, or one is no number above 0 and below 1.

    Example:
        >>> [str(budget) for budget in parse_budgets(None, "0.5, 0.6")]
        ['target flops 0.5', 'target flops 0.6']
    """
    from aigtool.budget import Budget

    if (rates is None) == (flops is None):
        raise UserError(
            "budget: expected one of --target-flops and --target-rate, such as --target-flops 0.6"
        )
    given = flops or rates or ""
    try:
        shares = [float(part) for part in given.split(",")]
    except ValueError as error:
        raise UserError(
            f"budget {given!r}: expected numbers above 0 and below 1 with commas between"
        ) from error
    if len({*shares}) < len(shares):
        raise UserError(f"budget {given!r}: expected each number once")
    return [Budget(share, "rate" if flops is None else "flops") for share in shares]


def check_goes_with_data(data: str | None, **given: object) -> None:
    """Refuse options that are about the images of ``--data``, where there are none.

    Example:
        >>> check_goes_with_data("images", split="val")
        >>> check_goes_with_data(None, split=None, data_dir=Path("images"))
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: --data-dir without --data, whose images it is about: give both, \
or leave it out
    """
    names = [name.replace("_", "-") for name, value in given.items() if value]
    if data is None and names:
        raise UserError(
            f"--{names[0]} without --data, whose images it is about: give both, or leave it out"
        )


def parse_counts(
    option: str, text: str, least: int = 1, most: int | None = None, *, different: bool = False
) -> list[int]:
    """Read whole numbers such as ``1,16``.

    Args:
        option: Of the command line, for the error.
        text: Numbers with commas between.
        least: The lowest that is taken.
        most: The highest; none by default.
        different: Whether no number may come twice.

    Raises:
        UserError: One is no whole number in that range, or comes twice.

    Example:
        >>> parse_counts("batch-size", "1, 16")
        [1, 16]
    """
    parts = [part.strip() for part in text.split(",")]
    highest = math.inf if most is None else most
    numbers = [int(part) for part in parts if part.isdecimal() and least <= int(part) <= highest]
    if len({*numbers} if different else numbers) < len(parts):
        kind = "different whole numbers" if different else "whole numbers"
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{option} {text!r}: expected {kind} {span} with commas between")
    return numbers


def parse_rates(option: str, text: str) -> list[float]:
    """Read rates such as ``0.4,0.6``.

    Raises:
        UserError: One is no number from 0 to 1.

    Example:
        >>> parse_rates("simulate-rate", "0.4, 1")
        [0.4, 1.0]
    """
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 <= rate <= 1 for rate in rates):
        raise UserError(f"{option} {text!r}: expected numbers from 0 to 1 with commas between")
    return rates


def parse_names(option: str, text: str, known: Sequence[Name]) -> list[Name]:
    """Read names such as ``eager,skip``.

    Raises:
        UserError: One is not known.

    Example:
        >>> parse_names("engine", "skip, onnx", ("skip", "onnx"))
        ['skip', 'onnx']
    """
    parts = [part.strip() for part in text.split(",")]
    if unknown := [part for part in parts if part not in known]:
        raise UserError(f"{option} {unknown[0]!r}: expected some of {', '.join(known)}")
    return [next(name for name in known if name == part) for part in parts]
