import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from aigtool.cli import console
from aigtool.cli.console import LOG_SECONDS, print_table, progress
from aigtool.cli.reporting import told_how_to_go_on


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


@pytest.mark.parametrize("width", [20, 40, 80])
def test_figures_and_headings_stay_whole_however_narrow_it_is(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aigtool.cli.console.out", Console(highlight=False, width=width))
    rows = [["(in no residual block)", "0.00048", "1,106"], ["layer1.0", "12.34567", "338"]]
    print_table("", ["engine", "GFLOPs\nof dense", "gate\nparameters"], rows)
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in lines]
    assert {"0.00048", "12.34567", "1,106", "338", "parameters"} <= {
        w for line in cells for w in line
    }
    assert cells[1][0] == "engine"
    assert max(map(len, lines)) <= max(width, 12 + 2 + 8 + 2 + 10)
    assert "residual" in " ".join(lines)


@pytest.mark.parametrize("is_saved", [False, True])
def test_how_to_go_on_is_told_where_there_is_something_to_go_on_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, is_saved: bool
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, width=120))
    saved = tmp_path / "last.ckpt"
    with pytest.raises(KeyboardInterrupt), told_how_to_go_on("aigtool finetune --resume x", saved):
        if is_saved:
            saved.touch()
        raise KeyboardInterrupt
    told = "go on with: aigtool finetune --resume x" if is_saved else "before anything was saved"
    assert plain(shown).startswith("stopped") and told in plain(shown)
