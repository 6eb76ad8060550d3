"""Fine-tuning: cross entropy, distillation and a target-rate loss."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import random_seed
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.conversion import (
    gate_policy,
    named_gates,
    recorded_decisions,
    set_policy,
    strip,
)
from aigtool.data.images import ImageSet
from aigtool.data.loading import count_batches, load_batches
from aigtool.errors import NonFiniteLossError, UserError
from aigtool.flops import count_flops
from aigtool.gates import Decision, Gate
from aigtool.losses import execution_rates, network_rate_loss, per_layer_rate_loss
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model, save_model
from aigtool.modes import in_mode
from aigtool.trace import collect_trace
from aigtool.training.config import FinetuneConfig, noise_at
from aigtool.training.run_folder import RunFolder

RATE_TOLERANCE = 0.02
"""An epoch counts as on target when its validation rate exceeds the target by at most this."""


@dataclass(frozen=True)
class StepReport:
    """What a training step has to tell: means over the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float
    top1: float
    execution_rate: float
    images_per_second: float


@dataclass(frozen=True)
class FinetuneResult:
    """What a run ended with.

    Attributes:
        model: The network of the best epoch, and its description.
        epoch: The best epoch, counted from 1.
        metrics: A row an epoch, as in ``metrics.csv``.
    """

    model: Model
    epoch: int
    metrics: list[dict[str, Any]]


def finetune(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    config: FinetuneConfig,
    *,
    out: str | Path,
    teacher: nn.Module | None = None,
    device: torch.device | str = "cpu",
    context: dict[str, Any] | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a gated network to a target execution rate; a network without gates just trains.

    The loss is ``(1 - distill) * cross entropy + distill * KL(teacher || network) +
    rate_weight * target-rate loss``. The best epoch is the one with the highest validation
    accuracy among those within ``RATE_TOLERANCE`` of the target under the argmax policy, or, where
    none is, the one nearest to it.

    Args:
        model: From ``convert`` or a model file; its network is changed.
        train: Training images, with a training transform.
        val: Validation images, by which the best epoch is chosen.
        config: Options.
        out: The run folder.
        teacher: The network to distil from, which is frozen; by default the given one as it is
            now, without gates.
        device: Where to train.
        context: What ``config.yaml`` should say besides the options.
        on_step: Called after each step.
        on_epoch: Called with each epoch's metrics.

    Returns:
        The best network, which ``out/best.safetensors`` holds.

    Raises:
        NonFiniteLossError: The loss became infinite or not a number.
        UserError: The optimiser or schedule is unknown, or there are no images.
    """
    random_seed(config.seed)
    folder = RunFolder(out)
    names = model.description.class_names or train.classes
    description = replace(model.description, class_names=names, policy="argmax")
    network = PixelNetwork(model.network, description.input).to(device)
    gates = dict(named_gates(network))
    dense = strip(copy.deepcopy(model.network)) if teacher is None else teacher
    if config.distill == 0:
        guide = None
    else:
        guide = PixelNetwork(dense, description.input).to(device).eval().requires_grad_(False)
    trainer = _Trainer(network, guide, config, len(train))
    folder.clear()
    folder.write_config(config, context or {})
    if gates:
        save_model(folder.dense, dense, description)
    flops = count_flops(model.network, description.input.size)
    metrics: list[dict[str, Any]] = []
    best: tuple[float, float, int] | None = None
    for epoch in range(1, config.epochs + 1):
        row = trainer.train_epoch(epoch, train, on_step)
        trace = collect_trace(
            network, val, flops=flops, batch_size=config.batch_size, workers=config.workers
        )
        row |= _validation(trace.summary(), float(trace.images["loss"].mean()))
        metrics.append(row)
        key = (-_excess(row, trainer.targets), row["val_top1"], epoch)
        row["best"] = best is None or key > best
        if row["best"]:
            best = key
            done = description.after("finetune", epoch=epoch, **_headline(row, config))
            save_model(folder.best, model.network, done)
            best_state = {k: v.detach().clone() for k, v in model.network.state_dict().items()}
        folder.write_metrics(metrics)
        folder.write_state(trainer.state(epoch, metrics))
        on_epoch(row)

    assert best is not None
    model.network.load_state_dict(best_state)
    measure_expected_rates(
        network, load_batches(train, batch_size=config.batch_size, workers=config.workers)
    )
    set_policy(network, "argmax")
    save_model(folder.best, model.network.eval(), done)
    return FinetuneResult(Model(model.network, done), best[2], metrics)


def measure_expected_rates(network: PixelNetwork, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Store each gate's mean probability of executing, for the policy ``expected``.

    Args:
        network: Gated; run with sampled gates, as in training.
        batches: Training images.
    """
    gates = dict(named_gates(network))
    if not gates:
        return
    totals = torch.zeros(len(gates), device=network.mean.device)
    count = 0
    with (
        torch.inference_mode(),
        in_mode(network, training=False),
        gate_policy(network, "sampled"),
        recorded_decisions(network) as decisions,
    ):
        for pixels, _ in batches:
            network(pixels.to(network.mean.device))
            totals += torch.stack([decisions[name].logit.sigmoid().sum() for name in gates])
            count += len(pixels)
    for gate, total in zip(gates.values(), totals.tolist(), strict=True):
        gate.expected_rate.fill_(total / count)


class _Trainer:
    """The network, its teacher and its optimiser; one pass over the images at a time."""

    def __init__(
        self, network: PixelNetwork, teacher: nn.Module | None, config: FinetuneConfig, images: int
    ) -> None:
        if images < 1:
            raise UserError("no training images: expected at least one")
        self.network = network
        self.teacher = teacher
        self.config = config
        self.gates = dict(named_gates(network))
        self.targets = _targets(self.gates.values(), config)
        self.steps = count_batches(images, config.batch_size)
        self.done = 0
        self.optimizer, self.scheduler = _optimizer_and_schedule(network, config, self.steps)

    def train_epoch(
        self, epoch: int, images: ImageSet, on_step: Callable[[StepReport], None]
    ) -> dict[str, Any]:
        """Take one pass over the images and return the epoch's training metrics."""
        config, device = self.config, self.network.mean.device
        self.network.train()
        batches = load_batches(
            images,
            batch_size=config.batch_size,
            workers=config.workers,
            shuffle_seed=config.seed * 100_003 + epoch,
            pin_memory=device.type == "cuda",
        )
        start = time.perf_counter()
        sums = {"loss": 0.0, "rate_loss": 0.0, "correct": 0.0, "execution_rate": 0.0}
        seen = 0
        for step, batch in enumerate(batches, 1):
            pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            values = self._step(pixels, labels)
            self._check_finite(values["loss"], epoch, step)
            seen += len(labels)
            for name, value in values.items():
                sums[name] += value * (1 if name == "correct" else len(labels))
            means = {name: value / seen for name, value in sums.items()}
            seconds = time.perf_counter() - start
            on_step(
                StepReport(
                    epoch=epoch,
                    step=step,
                    steps=self.steps,
                    loss=means["loss"],
                    top1=100 * means["correct"],
                    execution_rate=means["execution_rate"],
                    images_per_second=seen / seconds,
                )
            )
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "noise": next(iter(self.gates.values())).noise if self.gates else 0.0,
            "train_loss": means["loss"],
            "train_rate_loss": means["rate_loss"],
            "train_top1": 100 * means["correct"],
            "train_execution_rate": means["execution_rate"],
            "train_images_per_second": seen / seconds,
        }

    def _step(self, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        total = self.steps * self.config.epochs
        self.scheduler.step_update(self.done)
        for gate in self.gates.values():
            gate.noise = noise_at(self.done / max(total - 1, 1), self.config.noise_hold)
        with recorded_decisions(self.network) as decisions:
            logits = self.network(pixels)
        loss = self._task_loss(logits, pixels, labels)
        rate_loss, rate = self._rate_loss(list(decisions.values()), loss)
        loss = loss + self.config.rate_weight * rate_loss
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.done += 1
        correct = (logits.argmax(1) == labels).sum()
        names = ("loss", "rate_loss", "correct", "execution_rate")
        return dict(zip(names, torch.stack([loss, rate_loss, correct, rate]).tolist(), strict=True))

    def _task_loss(self, logits: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = self.teacher(pixels).log_softmax(1)
        divergence = F.kl_div(logits.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        return (1 - self.config.distill) * loss + self.config.distill * divergence

    def _rate_loss(self, decisions: list[Decision], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target-rate loss and the mean execution rate."""
        if not decisions:
            return torch.zeros_like(like), torch.ones_like(like)
        rates = execution_rates(decisions)
        if self.config.target == "network":
            return network_rate_loss(rates, self.config.target_rate), rates.mean()
        return per_layer_rate_loss(rates, rates.new_tensor(self.targets)), rates.mean()

    def _check_finite(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at epoch {epoch}, step {step}: try a lower --lr or --gate-lr; "
                "the files of the epochs before it are kept"
            )

    def state(self, epoch: int, metrics: list[dict[str, Any]]) -> dict[str, Any]:
        """Return all state after an epoch, as tensors and plain values."""
        return {
            "epoch": epoch,
            "steps_done": self.done,
            "network": self.network.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "metrics": metrics,
        }


def _optimizer_and_schedule(
    network: nn.Module, config: FinetuneConfig, steps: int
) -> tuple[torch.optim.Optimizer, Scheduler]:
    try:
        optimizer = create_optimizer_v2(
            _parameter_groups(network, config),
            opt=config.opt,
            lr=config.lr,
            momentum=config.momentum,
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            min_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
        if scheduler is None:
            raise ValueError("there is no such schedule")
        if getattr(optimizer, "is_second_order", False):
            raise ValueError("it wants second derivatives, which straight-through gates lack")
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"optimiser {config.opt!r} with schedule {config.sched!r} cannot be made: {error}; "
            "expected names that timm knows, such as sgd, adamw and cosine, step"
        ) from error
    return optimizer, scheduler


def _parameter_groups(network: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    of_gates = [p for _, gate in named_gates(network) for p in gate.parameters()]
    members = set(of_gates)
    own = [p for p in network.parameters() if p not in members]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        {"params": of_gates, "weight_decay": 0.0, "lr": config.gate_lr},
    ]
    return [group for group in groups if group["params"]]


def _validation(summary: dict[str, Any], loss: float) -> dict[str, Any]:
    kept = ("correct", "top1", "top1_stderr", "images", "execution_rate", "flops_fraction")
    row: dict[str, Any] = {f"val_{name}": summary[name] for name in kept}
    row |= {"val_loss": loss, "val_adaptive_gates": summary["adaptive_gates"]}
    return row | {f"rate.{gate['name']}": gate["rate"] for gate in summary["gates"]}


def _targets(gates: Iterable[Gate], config: FinetuneConfig) -> list[float]:
    """Return each gate's target: per layer its own, where conversion gave it one."""
    own = [gate.target if config.target == "per-layer" else None for gate in gates]
    return [config.target_rate if target is None else target for target in own]


def _excess(row: dict[str, Any], targets: list[float]) -> float:
    """Return by how much an epoch's rate is over the mean target, beyond the tolerance."""
    if not targets:
        return 0.0
    excess = row["val_execution_rate"] - sum(targets) / len(targets) - RATE_TOLERANCE
    return max(0.0, float(excess))


def _headline(row: dict[str, Any], config: FinetuneConfig) -> dict[str, Any]:
    names = ("val_correct", "val_images", "val_execution_rate", "val_flops_fraction")
    return {
        "target": config.target,
        "target_rate": config.target_rate,
        **{name: row[name] for name in names},
    }
