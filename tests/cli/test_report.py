"""``aigtool report``, in one process: where the page goes, and what it says it wrote."""

from pathlib import Path

from aigtool.cli.main import run
from tests.cli.conftest import Command
from tests.report.made import write_all, write_run


def test_the_page_goes_into_the_folder_and_is_not_replaced_unasked(
    aigtool: Command, tmp_path: Path
) -> None:
    write_all(tmp_path)
    told = aigtool("report", tmp_path)
    assert f"wrote {tmp_path / 'report.html'}" in told.err.replace("\n", "")
    assert run(["report", str(tmp_path)]) == 2
    found = aigtool("report", tmp_path, "--force", "--json")
    assert found["bytes"] == (tmp_path / "report.html").stat().st_size
    assert str(tmp_path / "sweep" / "sweep.json") in found["files"]


def test_traces_and_folders_make_one_page(aigtool: Command, tmp_path: Path) -> None:
    write_all(tmp_path / "a")
    write_run(tmp_path / "b")
    gated = tmp_path / "a" / "traces" / "gated.parquet"
    found = aigtool("report", gated, tmp_path / "b", "--json", "--quiet")
    assert found["out"] == str(gated.with_name("report.html"))
    assert found["files"] == [str(gated), str(tmp_path / "b" / "metrics.csv")]


def test_what_evaluate_and_analyze_write_is_taken(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = ["--data", image_folder, "--split", "test", "--workers", "0", "--quiet"]
    aigtool("evaluate", model, *data, "--out", tmp_path / "r20.parquet")
    aigtool("analyze", model, *data, "--format", "png", "--out", tmp_path / "analysis")
    aigtool("report", tmp_path, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>Gates of") == 1
    assert page.count('<img src="data:image/webp') == 12
    assert str(image_folder) in page
