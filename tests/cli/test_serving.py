"""The commands that serve a network, in one process: what they print, write and return."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from aigtool.cli.main import run
from aigtool.inference.benchmark import Row, measure_all
from aigtool.inference.checking import Check
from aigtool.inference.folding import FEW
from tests.cli.conftest import Command


def test_an_exported_network_predicts_as_the_model_file(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    out, test = tmp_path / "r20.onnx", image_folder / "test"
    smaller = ["--img-size", "16"]
    result = aigtool("export", model, "--out", out, "--limit", "4", *smaller, "--json")
    assert result["check"]["data"] == "4 images of seeded noise"
    assert result["check"]["flips"] == 0
    assert (result["out"], result["bytes"]) == (str(out), out.stat().st_size)
    lines = [
        [json.loads(line) for line in aigtool("predict", *given).out.splitlines()]
        for given in (
            (model, test, *smaller, "--format", "jsonl"),
            (out, test, "--format", "jsonl"),
        )
    ]
    assert [len(made) for made in lines] == [12, 12]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["executed"] == theirs["executed"]
        assert ours["gflops"] == theirs["gflops"]
        assert (ours["file"], ours["label"]) == (theirs["file"], theirs["label"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    with_csv = aigtool("predict", model, test / "red", "--format", "csv").out.splitlines()
    assert with_csv[0] == "file,label,name,probability,blocks,gflops,milliseconds"
    assert len(with_csv) == 5
    header, row, *_ = aigtool("predict", model, test / "red").out.splitlines()
    assert header.split() == ["file", "class", "probability", "blocks", "GFLOPs", "ms"]
    assert "%" in row


def test_predict_takes_a_list_and_tells_what_it_could_not_read(
    model: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = next((image_folder / "test/red").iterdir()), image_folder / "b.png"
    bad.write_bytes(b"no image")
    predict = ["predict", str(model), "-", "--format", "csv"]

    def lines(*names: str | Path) -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", StringIO("".join(f"{name}\n" for name in names)))
        code = run(predict)
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    code, rows, _ = lines(good, good)
    assert (code, [row.split(",")[0] for row in rows]) == (0, ["file", str(good), str(good)])
    code, rows, errors = lines(bad, good)
    assert (code, [row.split(",")[0] for row in rows]) == (2, ["file", str(good)])
    assert "images that could not be read: 1" in errors.splitlines()[-1]
    code, rows, _ = lines()
    assert (code, len(rows)) == (0, 1)
    code, rows, _ = lines(bad)
    assert (code, rows) == (2, [])


@pytest.mark.parametrize("unbuffered", [["-u"], []], ids=["unbuffered", "buffered"])
@pytest.mark.parametrize(
    "command", [("--help",), pytest.param(("info", "{model}"), marks=pytest.mark.slow)], ids=str
)
def test_whoever_reads_may_have_had_enough(
    model: Path, command: Sequence[str], unbuffered: list[str]
) -> None:
    """As ``| head`` has, while a command writes or when all is done."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [
                sys.executable,
                *unbuffered,
                "-m",
                "aigtool",
                *(c.format(model=model) for c in command),
            ],
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_takes_no_more_is_told() -> None:
    with Path("/dev/full").open("wb") as output:
        command = [sys.executable, "-m", "aigtool", "--version"]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == b"error: the output cannot be written: No space left on device\n"


def test_an_export_is_checked_on_real_images_or_not_at_all(
    aigtool: Command,
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "r20.onnx"
    data = ("--data", image_folder, "--split", "test", "--limit", "5")
    checked = aigtool("export", model, *data, "--json")["check"]
    assert checked["data"] == f"{image_folder} test, 5 images"
    assert out.is_file()
    monkeypatch.setattr("aigtool.cli.export._onnx", lambda *_: (b"exported", None))
    assert aigtool("export", model, "--no-check", "--force", "--json")["check"] is None
    assert out.read_bytes() == b"exported"


def test_an_export_that_is_not_the_same_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Check(images=3, ties=0, compared=3, difference=0.5, flips=0)
    monkeypatch.setattr("aigtool.inference.checking.compare", lambda *_: found)
    monkeypatch.setattr("aigtool.cli.export._onnx", lambda *_: (b"exported", lambda: None))
    with pytest.raises(RuntimeError, match="is not the same on 3 images of seeded noise"):
        run(["export", str(model), "--limit", "3"])
    assert not (tmp_path / "r20.onnx").exists()


def test_an_export_with_nothing_to_check_by_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Check(images=3, ties=3, compared=0, difference=0.0, flips=0)
    monkeypatch.setattr("aigtool.inference.checking.compare", lambda *_: found)
    monkeypatch.setattr("aigtool.cli.export._onnx", lambda *_: (b"exported", lambda: None))
    assert run(["export", str(model), "--limit", "3"]) == 2
    assert "so there is nothing to check by" in capsys.readouterr().err
    assert not (tmp_path / "r20.onnx").exists()


def test_bench_of_real_images(aigtool: Command, model: Path, image_folder: Path) -> None:
    data = ("--data", image_folder, "--split", "test", "--batch-size", "4", "--rounds", "1")
    result = aigtool("bench", model, *data, "--engine", "eager,skip", "--threads", "1", "--json")
    assert [row["engine"] for row in result["rows"]] == ["eager", "skip"]
    assert [row["patterns"] for row in result["rows"]] == [3, 3]
    assert result["rows"][0]["execution_rate"] == result["rows"][1]["execution_rate"]


def test_a_program_is_checked_as_well(aigtool: Command, tmp_path: Path) -> None:
    model, few = tmp_path / "r20.safetensors", ("--num-classes", "3", "--ungated", "first:6")
    aigtool("convert", "cifar_resnet20", *few, "--out", model)
    result = aigtool("export", model, "--format", "torch", "--limit", "3", "--json")
    assert (result["out"], result["format"]) == (str(model.with_suffix(".pt2")), "torch")
    assert (result["check"]["images"], result["check"]["flips"]) == (3, 0)
    about = {"class_names": "", "preprocessing": ""}
    program = torch.export.load(result["out"], extra_files=about)
    logits, _, executed = program.module()(torch.rand(1, 3, 32, 32))
    assert (logits.shape, executed.shape) == ((1, 3), (1, 3))
    assert json.loads(about["preprocessing"])["size"] == [3, 32, 32]


def test_bench_writes_its_table_and_picture(aigtool: Command, model: Path, tmp_path: Path) -> None:
    options = ["--patterns", "2", "--rounds", "1", "--threads", "1", "--batch-size", "1,2"]
    result = aigtool("bench", model, *options, "--out", tmp_path / "b", "--json")
    assert [(row["engine"], row["batch_size"]) for row in result["rows"]] == [
        *(("eager", 1), ("eager", 2), ("skip", 1), ("skip", 2)),
    ]
    wanted = {
        *("engine", "device", "dtype", "batch_size", "threads", "patterns", "dense_ms"),
        *("dense_iqr_ms", "open_ms", "closed_ms", "gated_ms", "gated_iqr_ms", "ideal_ms"),
        *("efficiency", "speedup", "execution_rate", "flops_fraction", "gated_flops_fraction"),
    }
    assert wanted <= result["rows"][0].keys()
    assert len(pd.read_csv(tmp_path / "b" / "bench.csv")) == 4
    assert (tmp_path / "b" / "bench.png").stat().st_size > 10_000
    shown = aigtool("bench", "cifar_resnet20", *options, "--engine", "skip")
    assert "threads 1, type float32" in shown.out.splitlines()[0]


def test_bench_tells_that_gates_were_not_compiled(
    aigtool: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigtool.inference.folding.native", None)
    monkeypatch.setattr("aigtool.inference.folding._problem", "no module")
    options = ["--patterns", "1", "--rounds", "1", "--threads", "1"]
    told = "what is written in C is missing (no module)"
    assert told in aigtool("bench", model, *options, "--engine", "skip").err
    assert told not in aigtool("bench", model, *options, "--engine", "eager").err
    many = ["--batch-size", str(FEW + 1)]
    assert told not in aigtool("bench", model, *options, *many, "--engine", "skip").err


def test_an_interrupted_bench_tells_what_it_has_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any, **named: Any) -> Iterator[Row]:
        yield next(measure_all(*given, **named))
        raise KeyboardInterrupt

    monkeypatch.setattr("aigtool.inference.benchmark.measure_all", interrupted)
    options = ["--patterns", "2", "--rounds", "1", "--threads", "1", "--out", str(tmp_path / "b")]
    assert run(["bench", str(model), *options]) == 130
    printed = capsys.readouterr()
    assert "eager" in printed.out
    assert "interrupted" in printed.err
    assert len(pd.read_csv(tmp_path / "b" / "bench.csv")) == 1
