"""The commands that serve a network, in one process: what they print, write and return."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.cli.conftest import Command


def test_an_exported_network_predicts_as_the_model_file(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    out, test = tmp_path / "r20.onnx", image_folder / "test"
    result = aigtool("export", model, "--out", out, "--limit", "4", "--json")
    assert result["check"]["data"] == "4 images of seeded noise"
    assert result["check"]["flips"] == 0
    assert (result["out"], result["bytes"]) == (str(out), out.stat().st_size)
    lines = [
        [json.loads(line) for line in aigtool("predict", *given).out.splitlines()]
        for given in ((model, test, "--format", "jsonl"), (out, test, "--format", "jsonl"))
    ]
    assert [len(made) for made in lines] == [12, 12]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["executed"] == theirs["executed"]
        assert (ours["file"], ours["label"]) == (theirs["file"], theirs["label"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    with_csv = aigtool("predict", model, test / "red", "--format", "csv").out.splitlines()
    assert with_csv[0] == "file,label,name,probability,blocks,gflops,milliseconds"
    assert len(with_csv) == 5
    header, row, *_ = aigtool("predict", model, test / "red").out.splitlines()
    assert header.split() == ["file", "class", "probability", "blocks", "GFLOPs", "ms"]
    assert "%" in row


def test_a_program_is_checked_as_well(aigtool: Command, model: Path) -> None:
    result = aigtool("export", model, "--format", "torch", "--limit", "3", "--json")
    assert (result["out"], result["format"]) == (str(model.with_suffix(".pt2")), "torch")
    assert (result["check"]["images"], result["check"]["flips"]) == (3, 0)
    about = {"class_names": "", "preprocessing": ""}
    program = torch.export.load(result["out"], extra_files=about)
    logits, _, executed = program.module()(torch.rand(1, 3, 32, 32))
    assert (logits.shape, executed.shape) == ((1, 3), (1, 9))
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
    shown = aigtool("bench", "cifar_resnet20", *options, "--engine", "skip").out
    assert "threads 1, type float32" in shown.splitlines()[0]
