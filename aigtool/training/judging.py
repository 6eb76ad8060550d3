"""What is measured after each epoch, within the budget, and which epoch is the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from aigtool.budget import Budget
from aigtool.calibration import calibrate, calibrate_each, kept_thresholds
from aigtool.data.images import ImageSet
from aigtool.flops import NetworkFlops
from aigtool.models.description import Description, PixelNetwork
from aigtool.models.files import save_model
from aigtool.trace import collect_trace
from aigtool.training.objective import Objective
from aigtool.training.run_folder import RunFolder

CALIBRATION_IMAGES = 2000
"""Each epoch's thresholds are set on at most so many validation images."""


@dataclass(frozen=True)
class Judge:
    """Measures each epoch's network and keeps the best one.

    Attributes:
        val: Images to measure on.
        objective: What the network is trained to.
        flops: What ``count_flops`` counted for it.
        description: What its file says, but for what it was trained to.
        budget: What it is to spend; None where nothing is to be kept to.
        folder: Where metrics and the best epoch are written.
    """

    val: ImageSet
    objective: Objective
    flops: NetworkFlops
    description: Description
    budget: Budget | None
    folder: RunFolder

    def __call__(
        self, network: PixelNetwork, row: dict[str, Any], earlier: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, Any], Sequence[float]]:
        """Measure with the thresholds that keep to the budget; the network has its own afterwards.

        Args:
            network: That of the epoch.
            row: What training tells of it.
            earlier: The rows of the epochs before.

        Returns:
            The epoch's row, and each gate's execution rate with the network's own thresholds.
        """
        with kept_thresholds(network):
            measured, rates = self._measure(network)
            row = row | measured
            row["best"] = is_best([*earlier, row])
            if row["best"]:
                save_model(self.folder.best, network.network, self.told(row))
        self.folder.write_metrics([*earlier, row])
        return row, rates

    def told(self, row: Mapping[str, Any]) -> Description:
        """Return the description of an epoch's network; it says what a gated one was asked for."""
        config = self.objective.config
        names = ("val_correct", "val_images", "val_execution_rate", "val_flops_fraction")
        asked: dict[str, Any] = {}
        if self.budget is not None:
            asked = {"target": config.target, f"target_{self.budget.unit}": self.budget.share}
        elif row["val_execution_rate"] is not None:
            asked = {"target": config.target, "target_rate": 1.0}
        if config.is_per_layer:
            asked["target"] = "per-layer"
        told = {name: row[name] for name in names}
        return self.description.after("finetune", epoch=row["epoch"], **asked, **told)

    def _measure(self, network: PixelNetwork) -> tuple[dict[str, Any], Sequence[float]]:
        row: dict[str, Any] = {}
        rates: Sequence[float] = ()
        objective, config, flops = self.objective, self.objective.config, self.flops
        size = max(1, config.batch_size // objective.processes.count)
        how: dict[str, Any] = {"batch_size": size, "workers": config.workers}
        if objective.gates:
            chosen = self.val.limited(CALIBRATION_IMAGES)
            if config.is_per_layer:
                found = calibrate_each(network, chosen, objective.layer_targets, **how)
            else:
                found = calibrate(network, chosen, config.budget, flops, quick=True, **how)
            rates = found.rates
            shift = fmean(map(abs, found.shifts))
            row |= {"threshold_shift": shift, "val_uncalibrated": found.before}
        trace = collect_trace(network, self.val, flops=flops, **how)
        summary = trace.summary()
        row |= {f"val_{name}": summary[name] for name in _MEASURED}
        row["val_loss"] = float(trace.images["loss"].mean())
        return row | {f"rate.{gate['name']}": gate["rate"] for gate in summary["gates"]}, rates


def is_best(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the last epoch is as accurate as any, within that one's standard error.

    The highest of many counts of right answers is luck in part, and the learning rate falls: of
    epochs that validation images do not tell apart the last is trained best. It is the
    one-standard-error rule of Breiman et al., Classification and Regression Trees (1984), 3.4.3.

    Args:
        metrics: A row an epoch, with ``val_top1`` and ``val_top1_stderr`` in percent.

    Example:
        >>> rows = [{"val_top1": top1, "val_top1_stderr": 2.0} for top1 in (80, 90, 89, 87)]
        >>> [is_best(rows[:epoch]) for epoch in (1, 2, 3, 4)]
        [True, True, True, False]
    """
    highest = max(metrics, key=lambda row: row["val_top1"])
    least = highest["val_top1"] - highest["val_top1_stderr"]
    return bool(metrics[-1]["val_top1"] >= least)


_MEASURED = (
    "correct",
    "top1",
    "top1_stderr",
    "images",
    "execution_rate",
    "flops_fraction",
    "flops_fraction_stdev",
    "adaptive_gates",
    "always_on_gates",
    "always_off_gates",
)
