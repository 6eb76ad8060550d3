"""The entry point: commands, and every error as the one line it deserves."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import pairwise

import typer

from aigtool.cli.analyze import analyze
from aigtool.cli.attack import attack
from aigtool.cli.bench import bench
from aigtool.cli.calibrate import calibrate
from aigtool.cli.console import Settings, err
from aigtool.cli.convert import convert
from aigtool.cli.demo import demo
from aigtool.cli.evaluate import evaluate
from aigtool.cli.export import export
from aigtool.cli.finetune import finetune
from aigtool.cli.flops import flops
from aigtool.cli.info import info
from aigtool.cli.models import models
from aigtool.cli.predict import predict
from aigtool.cli.report import report
from aigtool.cli.sweep import sweep
from aigtool.errors import NonFiniteLossError, UserError
from aigtool.launch import place
from aigtool.output import NO_ROOM
from aigtool.version import __version__

app = typer.Typer(
    name="aigtool",
    help="Turn a pretrained ResNet into one that decides, image by image, which of its blocks to "
    "run, and measure what that buys.",
    epilog="Start with: aigtool demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(models, convert, finetune, sweep, calibrate, evaluate),
    *(flops, bench, export, predict, analyze, attack, report, info, demo),
):
    app.command()(command)

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a wrong option; which module has it depends on typer's version."""


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"aigtool {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    _, count = place()
    if count > 1 and ctx.invoked_subcommand != "finetune":
        raise UserError(
            f"aigtool {ctx.invoked_subcommand} in {count} processes: expected one; finetune alone "
            "trains in several"
        )


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; ``sys.argv`` by default.

    Returns:
        0; 2 for what the user got wrong, told in one line; 3 for a loss that is not finite; 130
        after Ctrl-C; 1, with a traceback, for a defect.

    Raises:
        BrokenPipeError: Whoever reads the output has had enough of it.
    """
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
    Settings.quiet = Settings.debug = False
    try:
        code = app(args=arguments, prog_name="aigtool", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _fail(_usage_text(error, sys.argv[1:] if arguments is None else arguments), 2)
    except UserError as error:
        if Settings.debug:
            traceback.print_exc()
        return _fail(str(error), 2)
    except NonFiniteLossError as error:
        return _fail(str(error), 3)
    except SystemExit as stopped:
        # Typer's, where whoever reads the output has had enough of it.
        if isinstance(stopped.__context__, BrokenPipeError):
            raise stopped.__context__ from None
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; no file is left half-written", 130)
    if code == 130:
        return _fail("interrupted; no file is left half-written", 130)
    return code if isinstance(code, int) else 0


def _usage_text(error: BaseException, arguments: Sequence[str]) -> str:
    """Return a usage error as one line, with the value that was given."""
    context, parameter = (getattr(error, name, None) for name in ("ctx", "param"))
    command = context.command_path if context is not None else "aigtool"
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    for option, value in pairwise(arguments):
        if option in getattr(parameter, "opts", ()) and repr(value) not in message:
            message = message.replace(f"'{option}'", f"'{option} {value}'")
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"


def _fail(message: str, code: int) -> int:
    rank, count = place()
    where = f" in process {rank + 1} of {count}" if rank else ""
    err.print(f"error{where}: {message}", style=None, markup=False, soft_wrap=True)
    return code


def _silence() -> None:
    """Let nothing more be written to a standard output that takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line and exit."""
    try:
        code = run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # Whoever reads the output has had enough of it.
        _silence()
        code = 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _silence()
        code = _fail(f"the output cannot be written: {error.strerror}", 2)
    sys.exit(code)
