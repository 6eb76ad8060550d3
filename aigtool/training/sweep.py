"""Several budgets and seeds: a run each, and what they come to."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from aigtool.analysis.comparison import DIFFERENCE, FIGURES, difference_to, figures_of
from aigtool.analysis.training_plots import sweep_figure
from aigtool.budget import Budget, Unit
from aigtool.data.images import ImageSet
from aigtool.models.files import Model
from aigtool.output import records, replacing, write_json
from aigtool.trace import ExecutionTrace
from aigtool.training.config import FinetuneConfig
from aigtool.training.loop import Callbacks, finetune
from aigtool.training.options import complete, places_of
from aigtool.training.run_folder import RunFolder

GATED = "gated"
"""What the runs of a sweep train, but where they are a baseline."""


@dataclass(frozen=True, order=True)
class Point:
    """One run of a sweep.

    Example:
        >>> Point(Budget(0.6, "flops"), seed=1).name
        'flops0.6-seed1'
    """

    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.budget.unit}{self.budget.share:g}-seed{self.seed}"

    def config(self, recipe: FinetuneConfig) -> FinetuneConfig:
        """Return the options of its run."""
        share, flops = self.budget.share, self.budget.unit == "flops"
        return replace(
            recipe,
            target_rate=None if flops else share,
            target_flops=share if flops else None,
            seed=self.seed,
        )


def _unwatched(_point: Point, _config: FinetuneConfig) -> AbstractContextManager[Callbacks]:
    return nullcontext(Callbacks())


def run_points(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    points: Sequence[Point],
    recipe: FinetuneConfig,
    *,
    out: str | Path,
    teacher: Model | None = None,
    device: torch.device | str = "cpu",
    context: dict[str, Any] | None = None,
    watch: Callable[[Point, FinetuneConfig], AbstractContextManager[Callbacks]] = _unwatched,
) -> Iterator[tuple[Point, Path]]:
    """Fine-tune a gated network to each point; what was done before is not done again.

    Points that an earlier call finished in the same folder are given as well.

    Args:
        model: From ``convert`` or a model file; left as it is.
        train: Training images, with a training transform.
        val: Validation images.
        points: The runs, each in a folder of its name.
        recipe: Options of all runs.
        out: The folder of their folders.
        teacher: As for ``finetune``.
        device: Where to train.
        context: What each ``config.yaml`` should say besides the options.
        watch: Gives what a run calls as it goes.

    Yields:
        Each point and its run's best model file.

    Raises:
        UserError: As ``finetune``, or a run that was begun had other options.
    """
    recipe = complete(recipe, model, teacher, places_of(model, teacher))
    names = {point.name for point in points}
    earlier = [point for point in points_in(out) if point.name not in names]
    folders = {point: RunFolder(Path(out) / point.name) for point in [*points, *earlier]}
    begun = [point for point, folder in folders.items() if folder.last.is_file()]
    # Asked of all before the first is trained: a folder of other options is told at once.
    finished = [p for p in begun if folders[p].is_finished(p.config(recipe), context)]
    for point, folder in folders.items():
        if point in earlier and point not in finished:
            continue
        config = point.config(recipe)
        if point not in finished:
            with watch(point, config) as callbacks:
                finetune(
                    copy.deepcopy(model),
                    train,
                    val,
                    config,
                    out=folder.path,
                    teacher=copy.deepcopy(teacher),
                    resume=point in begun,
                    device=device,
                    context=context,
                    callbacks=callbacks,
                )
        yield point, folder.best


def points_in(folder: str | Path) -> list[Point]:
    """Return the points whose runs were begun in a sweep's folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("rate0.5-seed3/last.ckpt", "notes/last.ckpt", "flops0.4-seed0/best"):
        ...     (folder / name).parent.mkdir()
        ...     (folder / name).touch()
        >>> [point.name for point in points_in(folder)]
        ['rate0.5-seed3']
    """
    found = []
    for state in sorted(Path(folder).glob("*/last.ckpt")):
        if named := re.fullmatch(r"(rate|flops)(0\.\d+)-seed(\d+)", state.parent.name):
            unit, share, seed = named.groups()
            found.append(Point(Budget(float(share), cast(Unit, unit)), int(seed)))
    return found


def point_rows(
    points: Mapping[Point, ExecutionTrace],
    others: Mapping[str, ExecutionTrace],
    dense: str,
    kind: str = GATED,
) -> pd.DataFrame:
    """Return a row a run, and one for each other network to compare with.

    Args:
        points: The trace of each run's network.
        others: Of other networks, by name, over the same images.
        dense: The name among these of the network before gating.
        kind: What the runs train.

    Returns:
        Columns ``network`` (``kind`` or a name), ``target``, ``unit``, ``seed``, the figures of
        the trace's summary, and ``difference`` to dense in points of top-1, paired by image, with
        ``difference_stderr``.
    """
    rows: list[dict[str, Any]] = []
    for name, trace in others.items():
        difference: dict[str, Any] = {}
        if name != dense:
            difference = difference_to(others[dense], [trace])
        rows.append({"network": name, **figures_of(trace), **difference})
    for point, trace in points.items():
        told = {"target": point.budget.share, "unit": point.budget.unit, "seed": point.seed}
        difference = difference_to(others[dense], [trace])
        rows.append({"network": kind, **told, **figures_of(trace), **difference})
    columns = ["network", "target", "unit", "seed", *FIGURES, *DIFFERENCE]
    return pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"})


def target_rows(points: Mapping[Point, ExecutionTrace], dense: ExecutionTrace) -> pd.DataFrame:
    """Return a row a target: means over its seeds, and their spread.

    Args:
        points: The trace of each run's network.
        dense: That of the network before gating, over the same images.

    Returns:
        Columns ``target``, ``unit``, ``runs``, the means of the figures, ``top1_stdev`` over
        seeds, ``flops_fraction_low`` and ``_high``, and ``difference`` to dense of the mean over
        seeds, paired by image, with ``difference_stderr``, which the images leave; what other
        seeds would do, ``top1_stdev`` tells.
    """
    rows: list[dict[str, Any]] = []
    for budget in dict.fromkeys(point.budget for point in points):
        traces = [trace for point, trace in points.items() if point.budget == budget]
        figures = pd.DataFrame([figures_of(trace) for trace in traces])
        rows.append(
            {
                "target": budget.share,
                "unit": budget.unit,
                "runs": len(traces),
                **{str(name): mean for name, mean in figures.mean().items()},
                "top1_stdev": figures["top1"].std(ddof=1) if len(traces) > 1 else np.nan,
                "flops_fraction_low": figures["flops_fraction"].min(),
                "flops_fraction_high": figures["flops_fraction"].max(),
                **difference_to(dense, traces),
            }
        )
    return pd.DataFrame(rows)


def write_sweep(
    runs: pd.DataFrame, targets: pd.DataFrame, folder: str | Path, about: str
) -> list[Path]:
    """Write what a sweep came to as CSV and JSON, and accuracy over GFLOPs as a figure.

    Args:
        runs: What ``point_rows`` returned.
        targets: What ``target_rows`` returned.
        folder: Where to.
        about: The data and its size.

    Returns:
        The files written.
    """
    folder = Path(folder)
    tables = {folder / "runs.csv": runs, folder / "targets.csv": targets}
    for path, table in tables.items():
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False)
    record, figure = (folder / f"sweep.{kind}" for kind in ("json", "png"))
    write_json(record, {"data": about, "runs": records(runs), "targets": records(targets)})
    with replacing(figure) as temporary:
        sweep_figure(runs, targets, about).savefig(temporary)
    return [*tables, record, figure]
