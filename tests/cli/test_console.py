import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from aigtool.cli import console
from aigtool.cli.console import LOG_SECONDS, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def plain(shown: io.StringIO) -> str:
    return " ".join(Text.from_ansi(shown.getvalue()).plain.split())


@pytest.mark.parametrize("terminal", [False, True])
def test_the_rate_is_of_what_is_done_now_and_not_of_what_a_resumed_run_did_before(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *, terminal: bool
) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, width=120, force_terminal=terminal, get_time=clock)
    monkeypatch.setattr(console, "err", screen)
    with progress("training", 10_000) as advance:
        clock.now += 1
        advance(9_000, earlier=True)
        for _ in range(2):
            clock.now += LOG_SECONDS
            advance(150)
    assert ("9300/10000 10 images/s" if terminal else "9300 of 10000 images, 10/s") in plain(shown)
