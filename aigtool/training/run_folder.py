"""The run folder: what a fine-tuning run leaves behind."""

import io
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
import torchvision
import yaml

from aigtool.analysis.training_plots import RATE, training_figure
from aigtool.errors import UserError
from aigtool.models.files import DENSE_FILE, Model, save_model
from aigtool.output import replacing
from aigtool.training.config import COMPLETED, FinetuneConfig, read_settings
from aigtool.version import __version__


class RunFolder:
    """Paths and writers of a run's files; each is written whole or not at all.

    Args:
        path: The folder.

    Example:
        >>> RunFolder("runs/r56").best.as_posix()
        'runs/r56/best.safetensors'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.last = self.path / "last.ckpt"
        self.best = self.path / "best.safetensors"
        self.dense = self.path / DENSE_FILE
        self.figure = self.path / "training.png"

    def begin(
        self, config: FinetuneConfig, context: dict[str, Any], before: Model | None = None
    ) -> None:
        """Write every option as used, the versions, and the network before gating, if any.

        An earlier run's files are removed, so that none of them is taken for this run's.
        """
        for path in (self.config, self.metrics, self.last, self.best, self.dense, self.figure):
            path.unlink(missing_ok=True)
        versions = {
            "aigtool": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "timm": timm.__version__,
        }
        values = {**context, "options": _plain(asdict(config)), "versions": versions}
        with replacing(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False))
        if before is not None:
            save_model(self.dense, before.network, before.description)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write a row an epoch, and the picture of them."""
        frame = pd.DataFrame(rows)
        with replacing(self.metrics) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
        with replacing(self.figure) as temporary:
            training_figure(frame).savefig(temporary)

    def write_state(self, state: dict[str, Any]) -> None:
        """Write all state, tensors and plain values only."""
        whole = io.BytesIO()  # torch.save does not tell that a disk is full from a defect.
        torch.save(state, whole)
        with replacing(self.last) as temporary:
            temporary.write_bytes(whole.getbuffer())

    def begun(self, config: FinetuneConfig) -> FinetuneConfig:
        """Return options with what the run in it took where nothing was given.

        Raises:
            UserError: There is none.
        """
        self._check_begun()
        stored = read_settings(self.config)["options"]
        return replace(
            config,
            **{n: stored[n] for n in COMPLETED if getattr(config, n) is None and n in stored},
        )

    def _check_begun(self) -> None:
        if not (self.config.is_file() and self.last.is_file()):
            raise UserError(
                f"run folder {self.path} has no run to resume: expected config.yaml and last.ckpt, "
                "as aigtool finetune writes them"
            )

    def read_state(
        self, config: FinetuneConfig, context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Read what ``write_state`` wrote, for a run of the same options.

        Raises:
            UserError: There is none, it cannot be read, or the options are others.
        """
        self._check_begun()
        values = read_settings(self.config)
        before = {**values, **values.pop("options")}
        now = {**_plain(dict(context or {})), **_plain(asdict(config))}
        # However and wherever images are run, they come in the same order with the same transforms.
        told = [name for name in now if name not in ("workers", "device")]
        for name in told:
            if now[name] != before.get(name):
                raise UserError(
                    f"run folder {self.path} was started with {name} {before.get(name)}, not "
                    f"{now[name]}: resume it with what it had, or start a new run"
                )
        try:
            state: dict[str, Any] = torch.load(self.last, map_location="cpu", weights_only=True)
        # What torch.load raises depends on the file's first bytes.
        except Exception as error:
            problem = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{self.last} is no whole state of a run ({problem}): put it back, or start a new "
                "run"
            ) from error
        if state["metrics"] and not self.best.is_file():
            raise UserError(
                f"run folder {self.path} has lost its {self.best.name}: put it back, or start a "
                "new run"
            )
        return state

    def is_finished(self, config: FinetuneConfig, context: Mapping[str, Any] | None = None) -> bool:
        """Whether the run in it, of these options, came to its end."""
        finished: bool = self.read_state(config, context)["finished"]
        return finished


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as YAML keeps them."""
    plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    return plain


def read_metrics(file: Path) -> pd.DataFrame:
    """Return what ``RunFolder.write_metrics`` wrote, a row an epoch.

    Raises:
        KeyError: A column is missing.
        ValueError: The file is no such table: it is cut short, or a rate or a row is missing.
    """
    rows = pd.read_csv(file, dtype={"best": bool})
    if rows.empty:
        raise ValueError("no rows")
    rates = [str(column) for column in rows if str(column).startswith(RATE)]
    numbers = ("train_loss", "train_top1", "val_loss", "val_top1", *rates)
    metrics = rows.astype(
        {"epoch": int, "val_images": int, "best": bool, **dict.fromkeys(numbers, float)}
    )
    if metrics[rates].isna().any(axis=None):
        raise ValueError("a rate is missing")
    if not metrics["epoch"].is_unique:
        raise ValueError("an epoch is there twice")
    return metrics
