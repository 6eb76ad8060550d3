from dataclasses import replace
from pathlib import Path

import pytest

from aigtool.analysis.figures import write_analysis
from aigtool.errors import UserError
from aigtool.report.sources import find_results
from aigtool.trace import ExecutionTrace
from tests.report.made import made_trace, write_all, write_attack, write_run


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


def _write(file: Path, text: str) -> None:
    file.write_text(text)
