"""What the command line shows: tables, notes, progress, JSON and one-line errors."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_LEAST_TEXT = 12
"""Letters of text that a table leaves on a line."""

LOG_SECONDS = 15.0
"""In a log, a line of progress at most this often."""


class Settings:
    """What ``--quiet`` and ``--debug`` asked for, for the one command that runs."""

    quiet = False
    debug = False


def note(text: str) -> None:
    """Say something in passing, on stderr."""
    if not Settings.quiet:
        err.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """Say what the user should doubt, on stderr, even under ``--quiet``."""
    err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def wrote(paths: Sequence[str | Path], then: str = "") -> None:
    """End a command: what it wrote and what to run next."""
    for path in paths:
        note(f"wrote {path}")
    if then:
        note(f"next: {then}")


def print_json(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of ``--json`` on stdout; what is not a number becomes null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
) -> None:
    """Print a table on stdout: the first ``text_columns`` to the left, figures to the right.

    Text is folded where it is too wide. Figures are not: rather than that, rows are wider than the
    terminal.
    """
    _print_title(title)
    table = Table(box=None, pad_edge=False)
    gap, least = 2, 0
    for number, column in enumerate(columns):
        left = number < text_columns
        widest = max((len(row[number]) for row in rows), default=0)
        words = column.split() if left else column.split("\n")
        narrowest = max(min(widest, _LEAST_TEXT) if left else widest, *map(len, ("", *words)))
        least += narrowest + gap * (number > 0)
        table.add_column(
            column,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=not left,
            min_width=narrowest,
            header_style="dim",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = out if least <= out.width else Console(highlight=False, width=least)
    console.print(table)


def print_rows(columns: Mapping[str, int], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout row by row, as each is known.

    Args:
        columns: Each heading with the width of its column, negative to align to the right.
        rows: The cells of each row; what is wider than its column pushes the rest to the right.
    """

    def line(cells: Iterable[str]) -> str:
        fitted = zip(cells, columns.values(), strict=True)
        aligned = (cell.ljust(width) if width > 0 else cell.rjust(-width) for cell, width in fitted)
        return "  ".join(aligned).rstrip()

    out.print(Text(line(columns), style="dim"), soft_wrap=True)
    for row in rows:
        out.print(Text(line(row)), soft_wrap=True)


def _print_title(title: str) -> None:
    if title:
        out.print(Text(title, style="bold"), soft_wrap=True)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line, on stdout."""
    _print_title(title)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    out.print(table)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="dim")


@contextmanager
def progress(label: str, total: int, unit: str = "images") -> Iterator[Callable[..., None]]:
    """Show progress with its rate and the time left, live in a terminal, by lines in a log.

    Yields:
        A function of the number of units done since the last call, and perhaps ``about=`` with
        figures to show beside; ``earlier=True`` says that they were not done just now, so that
        they are no part of the rate.
    """
    if Settings.quiet:
        yield lambda *_args, **_options: None
        return
    if not err.is_terminal:
        yield _LogProgress(label, total, unit)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[about]}"),
        console=err,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=total, unit=unit, about="")

        def advance(done: int, about: str = "", *, earlier: bool = False) -> None:
            if earlier:
                before = int(bar.tasks[0].completed)
                bar.reset(task, completed=before + done, unit=unit, about=about)
            else:
                bar.update(task, advance=done, about=about)

        yield advance


class _LogProgress:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.earlier = 0
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, about: str = "", *, earlier: bool = False) -> None:
        self.done += done
        now = time.monotonic()
        if earlier:
            self.earlier, self.start = self.done, now
            return
        if now - self.last < LOG_SECONDS:
            return
        self.last = now
        rate = (self.done - self.earlier) / (now - self.start)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate else ""
        note(
            f"{self.label}: {self.done} of {self.total} {self.unit}, {rate:,.0f}/s{left}"
            f"{', ' + about if about else ''}"
        )


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show, in a terminal, what a wait is for."""
    if Settings.quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


def percent(value: float | None, stderr: float | None = None) -> str:
    """Format a percentage, with its standard error where there is one."""
    if value is None:
        return "-"
    return f"{value:.1f} %" if stderr is None else f"{value:.1f} ± {stderr:.1f} %"


def share(value: float | None) -> str:
    """Format a rate or fraction in 0..1."""
    return "-" if value is None else f"{value:.3f}"
