"""What the benchmarks of fine-tuned networks share: run folders, answers, and rows of a table."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigtool.data.augmentation import Augmentation
from aigtool.data.images import DataSource, ImageSet, open_images
from aigtool.data.loading import eval_transform
from aigtool.data.training import TrainingImages, open_training_images
from aigtool.flops import NetworkFlops, count_flops
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model, load_model
from aigtool.trace import ExecutionTrace, collect_trace
from aigtool.training.config import FinetuneConfig, read_settings
from aigtool.training.loop import finetune

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a network answered.

    Attributes:
        name: Of the run.
        right: ``(images,)``, whether each is right, or how often.
        fraction: Executed GFLOPs over dense.
    """

    name: str
    right: Floats
    fraction: float


@dataclass(frozen=True)
class Run:
    """A run folder: its settings, and the networks after and before."""

    name: str
    settings: dict[str, Any]
    gated: Model
    dense: Model

    @property
    def config(self) -> FinetuneConfig:
        """The options of the run."""
        return FinetuneConfig(**self.settings["options"])

    @property
    def source(self) -> DataSource:
        """Where its images come from."""
        named = ("data", "data_dir", "download", "class_map")
        return DataSource(*(self.settings[name] for name in named))

    @property
    def images(self) -> TrainingImages:
        """What it was trained and validated on."""
        augmentation = Augmentation(
            **{name: self.settings[name] for name in vars(Augmentation()) if name in self.settings}
        )
        images = open_training_images(
            self.dense.description,
            self.source,
            val_fraction=self.settings["val_fraction"],
            augmentation=augmentation,
        )
        return replace(images, train=images.train.limited(self.settings["limit"]))


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Open run folders of different names."""
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        raise SystemExit(f"runs {', '.join(names)}: expected folders of different names")
    return [_open_run(folder) for folder in folders]


def _open_run(folder: Path) -> Run:
    models = [load_model(folder / f"{name}.safetensors") for name in ("best", "dense")]
    return Run(folder.resolve().name, read_settings(folder / "config.yaml"), *models)


def counted(model: Model) -> tuple[PixelNetwork, NetworkFlops]:
    """Return a network that takes pixels, and its counts."""
    network = PixelNetwork(model.network, model.description.input).eval()
    return network, count_flops(model.network, model.description.input.size)


def traced(model: Model, images: ImageSet) -> ExecutionTrace:
    """Run a network over images."""
    network, flops = counted(model)
    return collect_trace(network, images, flops=flops)


def open_split(run: Run, split: str) -> ImageSet:
    """Open the images to judge by."""
    description = run.dense.description
    transform = eval_transform(description.input)
    return open_images(run.source, split, transform, description.class_names)


def answered(name: str, trace: ExecutionTrace) -> Answers:
    """Return what a trace says was answered."""
    return Answers(name, trace.correct.astype(float), trace.summary()["flops_fraction"])


def finetuned(run: Run, model: Model, images: ImageSet, out: Path, **changes: Any) -> Answers:
    """Fine-tune another network as a run was, into ``out``, and judge it; goes on if begun.

    ``changes`` are options in which it differs from the run.
    """
    data = run.images
    done = finetune(
        model,
        data.train,
        data.val,
        replace(run.config, **changes),
        out=out,
        teacher=copy.deepcopy(run.dense),
        resume=(out / "last.ckpt").is_file(),
    )
    whole, left = (counted(m)[1].gflops_dense for m in (run.dense, done.model))
    right = traced(done.model, images).correct.astype(float)
    return Answers(run.name, right, left / whole)


def print_rows(dense: Floats, rows: Mapping[str, Sequence[Answers]]) -> None:
    """Print right answers, and paired differences in points to dense and to ``gated``.

    Args:
        dense: What the dense network answered right.
        rows: By kind, the answers of each run; ``gated`` is one kind. Each is compared with the
            gated one of the same run, and the mean over runs with the mean.
    """
    gated = [answers.right for answers in rows["gated"]]
    print(f"{'':28}  {'right':>7}  {'GFLOPs':>6}  {'to dense':>15}  {'to gated':>15}  (points)")
    print(_row("dense", Answers("", dense, 1.0), dense, np.mean(gated, axis=0)))
    for kind, listed in rows.items():
        for answers, beside in zip(listed, gated, strict=True):
            print(_row(f"{kind}, {answers.name}", answers, dense, beside))
        right = np.mean([answers.right for answers in listed], axis=0)
        fraction = float(np.mean([answers.fraction for answers in listed]))
        mean = Answers("", right, fraction)
        print(_row(f"{kind}, mean", mean, dense, np.mean(gated, axis=0)))


def _row(name: str, answers: Answers, dense: Floats, gated: Floats) -> str:
    cells = []
    for other in (dense, gated):
        differences = 100 * (answers.right - other)
        error = differences.std() / len(differences) ** 0.5
        cells.append(f"{differences.mean():+6.2f} ± {error:.2f}")
    figures = f"{answers.right.sum():7.2f}  {answers.fraction:6.3f}"
    return f"{name:28}  {figures}  {cells[0]:>15}  {cells[1]:>15}"
