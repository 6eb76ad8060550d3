import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from aigtool.analysis.figures import write_analysis
from aigtool.errors import UserError
from aigtool.report.sources import find_results
from aigtool.trace import ExecutionTrace
from tests.report.made import (
    made_trace,
    write_all,
    write_attack,
    write_bench,
    write_run,
    write_sweep,
)


def _other_rate(text: str) -> str:
    rows = pd.read_csv(io.StringIO(text))
    return str(rows.assign(rate=rows["rate"] / 2).to_csv(index=False))


TABLES = (
    *("class_rates.csv", "gate_rates.csv", "blocks_executed.csv"),
    *("costs_by_confidence.csv", "extreme_images.csv"),
)


def test_everything_is_found_a_folder_below(tmp_path: Path) -> None:
    write_all(tmp_path)
    found = find_results([tmp_path])
    names = [*found.runs, *found.attacks, *found.benches, *found.sweeps, *found.traces]
    own = ("run", "attack", "bench", "sweep", "traces/dense", "traces/gated")
    assert names == [f"{tmp_path.name}/{name}" for name in own]
    assert len(found.files) == 6
    assert found.files[0].path == str(tmp_path / "attack" / "attack.json")


def test_a_folder_itself_and_a_file_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    made_trace(2, 3, 4).save(tmp_path / "one.parquet")
    assert list(find_results([tmp_path / "run"]).runs) == ["run"]
    one = [f"{tmp_path.name}/one"]
    assert list(find_results([tmp_path / "one.parquet"]).traces) == one
    assert list(find_results([tmp_path, tmp_path / "one.parquet"]).traces) == one


def test_only_gates_that_were_trained_to_tell_classes_do(tmp_path: Path) -> None:
    write_run(tmp_path / "class")
    write_run(tmp_path / "image", information_about="image")
    write_run(tmp_path / "dense", gates=0)
    runs = find_results([tmp_path]).runs
    told = {Path(name).name: run.tells_classes for name, run in runs.items()}
    assert told == {"class": True, "image": False, "dense": False}


def test_an_analysis_says_what_its_trace_does(tmp_path: Path) -> None:
    trace = made_trace(3, 4, 5, ["nan", "01", "None"])
    write_analysis(trace, tmp_path / "analysis", formats=[])
    [tables] = find_results([tmp_path]).analyses.values()
    assert tables.is_of(trace)
    assert not tables.is_of(made_trace(3, 4, 6, ["nan", "01", "None"]))
    assert tables.extremes["class"].unique().tolist() == ["nan", "01", "None"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "empty").mkdir(), "nothing there that a page is made of"),
        (lambda _: None, "no such file or folder"),
        (lambda folder: _write(folder / "e.parquet", "text"), "is no whole execution trace"),
        (lambda folder: _write(folder / "notes.txt", "text"), "nothing there"),
        (lambda folder: _write(folder / "attack.json", '{"rows": ['), "is not whole"),
        (lambda folder: _write(folder / "attack.json", '{"data": "x"}'), "is not whole"),
        (lambda folder: _write(folder / "sweep.json", "[]"), "is not whole"),
        (lambda folder: _write(folder / "bench.csv", "a,b\n1,2\n"), "is not whole"),
        (lambda folder: _write(folder / "bench.csv", "engine,device\n"), "no rows"),
        (lambda folder: _write(folder / "metrics.csv", "epoch\n1\n"), "is not whole"),
        (lambda folder: _write(folder / "metrics.csv", ""), "is not whole"),
        (lambda folder: _write(folder / "comparison.csv", "trace\na\n"), "is not whole"),
        (lambda folder: _write(folder / "analysis.json", "{}"), "is not whole"),
        (lambda folder: _spoil(write_attack, folder, '"images": 100', '"images": 0'), "no more of"),
        (lambda folder: _spoil(write_sweep, folder, '"seed"', '"sod"'), "is not whole"),
        (lambda folder: _spoil(write_bench, folder, ",16,", ",0,"), "a batch_size of one or more"),
        (lambda folder: _spoil(write_run, folder, "True", ""), "is not whole"),
        (lambda folder: _spoil(write_run, folder, "0.2,0.4,", "0.2,,"), "a rate is missing"),
        (lambda folder: _spoil(write_run, folder, "\n2,", "\n1,"), "an epoch is there twice"),
        (
            lambda folder: _spoil(write_run, folder, "versions:\n  aigtool: 0.1.0", "versions:"),
            "a map",
        ),
    ],
)
def test_wrong_input_is_told(spoil: object, told: str, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(tmp_path)
    given = next(iter(tmp_path.iterdir()), tmp_path / "missing")
    with pytest.raises(UserError, match=told):
        find_results([given])


def test_a_trace_and_tables_that_are_cut_short_are_told(
    small_trace: ExecutionTrace, tmp_path: Path
) -> None:
    small_trace.save(tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no whole execution trace"):
        find_results([tmp_path])
    write_analysis(small_trace, tmp_path / "analysis", formats=[])
    table = tmp_path / "analysis" / "class_rates.csv"
    for lines in (table.read_text().splitlines()[:4], []):
        table.write_text("\n".join(lines))
        with pytest.raises(UserError, match="not what aigtool analyze writes"):
            find_results([tmp_path / "analysis"])
    table.unlink()
    with pytest.raises(UserError, match="class_rates"):
        find_results([tmp_path / "analysis"])


def test_a_trace_of_no_image_is_told(tmp_path: Path) -> None:
    trace = made_trace(2, 3, 1)
    none = {"executed": trace.executed[:0], "probability": trace.probability[:0]}
    replace(trace, images=trace.images[:0], **none).save(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="of no image"):
        find_results([tmp_path])


def test_one_broken_thing_among_good_ones_is_told(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack")
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("[")
    with pytest.raises(UserError, match="not YAML"):
        find_results([tmp_path])


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        *((name, lambda text: text.splitlines()[0] + "\n", name) for name in TABLES),
        ("gate_rates.csv", lambda text: _lines(text, 1 + 4 // 2), "other gates than analysis.json"),
        ("gate_rates.csv", _other_rate, "other rates than analysis.json"),
        ("class_rates.csv", lambda text: _lines(text, 1 + 2 * 4), "other images than"),
        ("class_rates.csv", lambda text: _lines(text, 1 + 2 * 4 + 1), "other gates than"),
        ("blocks_executed.csv", lambda text: _lines(text, 3), "other images than"),
        ("gate_rates.csv", lambda text: text.replace("downsamples", "down"), "downsamples"),
        ("gate_rates.csv", lambda text: text.replace("False", "Fal", 1), "gate_rates.csv: "),
        ("extreme_images.csv", lambda text: text.replace("right", "r", 1), "right"),
        ("analysis.json", lambda text: text.replace('"top1_stderr"', '"error"'), "top1_stderr"),
        ("analysis.json", lambda text: _without(text, "errors"), "all of its findings"),
        ("analysis.json", lambda text: _without(text, "found_groups"), "all of its findings"),
        ("analysis.json", lambda text: _without(text, "gates"), "does not tell gates"),
    ],
)
def test_an_analysis_of_which_a_part_is_cut_is_told(
    name: str, spoil: Callable[[str], str], told: str, analysis: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "analysis"
    shutil.copytree(analysis, folder)
    whole = (folder / name).read_text()
    (folder / name).write_text(spoil(whole))
    assert (folder / name).read_text() != whole
    with pytest.raises(UserError) as error:
        find_results([folder])
    assert str(error.value).startswith(f"{folder} is not whole")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "analysis"
    write_analysis(made_trace(3, 4, 5), folder, formats=[])
    find_results([folder])
    return folder


def test_a_trace_and_an_analysis_of_one_name_are_both_kept(tmp_path: Path) -> None:
    made_trace(3, 4, 5).save(tmp_path / "gated.parquet")
    write_analysis(made_trace(3, 4, 6), tmp_path / "gated", formats=[])
    found = find_results([tmp_path])
    assert list(found.analyses) == [f"{tmp_path.name}/gated"]
    assert list(found.traces) == [f"{tmp_path.name}/gated.parquet"]


def test_what_is_given_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    found = find_results([".", tmp_path / "run", "../run/metrics.csv"])
    assert [file.path for file in found.files] == [str(tmp_path / "run" / "metrics.csv")]
    assert list(found.runs) == ["run"]


def _spoil(write: Callable[[Path], None], folder: Path, old: str, new: str) -> None:
    """Write what a command leaves, and replace a text in it."""
    write(folder / "spoilt")
    texts = {
        file: file.read_text() for file in (folder / "spoilt").iterdir() if file.suffix != ".png"
    }
    assert any(old in text for text in texts.values())
    for file, text in texts.items():
        file.write_text(text.replace(old, new))


def _lines(text: str, count: int) -> str:
    return "".join(text.splitlines(keepends=True)[:count])


def _without(text: str, name: str) -> str:
    return json.dumps({**json.loads(text), name: {}})


def _write(file: Path, text: str) -> None:
    file.write_text(text)
