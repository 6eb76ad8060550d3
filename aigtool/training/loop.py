"""Fine-tuning: the passes over the images, what is measured after each, and going on later."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from timm.utils import random_seed
from torch import Tensor, nn

from aigtool.calibration import calibrate
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
from aigtool.flops import NetworkFlops, count_flops
from aigtool.models.description import Description, PixelNetwork
from aigtool.models.files import Model, save_model
from aigtool.modes import in_mode
from aigtool.trace import collect_trace
from aigtool.training.config import FinetuneConfig, noise_at
from aigtool.training.objective import Objective
from aigtool.training.optimization import make_optimizer
from aigtool.training.run_folder import RunFolder

SAVE_SECONDS = 240.0
"""All state is saved when a step ends this long after the last time, and after each epoch."""
CALIBRATION_IMAGES = 2000
"""Each epoch's thresholds are set on at most so many validation images."""


@dataclass(frozen=True)
class StepReport:
    """What a training step has to tell: means over the epoch so far."""

    epoch: int
    step: int
    steps: int
    images: int
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
    resume: bool = False,
    device: torch.device | str = "cpu",
    context: dict[str, Any] | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a gated network to a budget; a network without gates just trains.

    After each epoch the thresholds that keep the network to the budget under the argmax policy
    are looked for on validation images (``calibrate``), and the accuracy is measured with them:
    the best epoch is the one with the highest, the later of equals. Training goes on with the
    thresholds as they were. On one CPU a run that was stopped and resumed ends with the weights of
    one that never was.

    Args:
        model: From ``convert`` or a model file; its network is changed.
        train: Training images, with a training transform.
        val: Validation images, by which thresholds are set and the best epoch is chosen.
        config: Options.
        out: The run folder.
        teacher: The network to distil from, which is frozen; by default the given one as it is
            now, without gates.
        resume: Whether to go on with the run in ``out``, from the same model, images and options.
        device: Where to train.
        context: What ``config.yaml`` should say besides the options.
        on_step: Called after each step.
        on_epoch: Called with each epoch's metrics.

    Returns:
        The best network, which ``out/best.safetensors`` holds.

    Raises:
        NonFiniteLossError: The loss became infinite or not a number.
        UserError: The optimiser or schedule is unknown, there are no images, the budget cannot be
            reached, or there is no such run to resume.
    """
    if len(val) < 1:
        raise UserError("no validation images: expected at least one to choose the best epoch by")
    random_seed(config.seed)
    folder = RunFolder(out)
    names = model.description.class_names or train.classes
    description = replace(model.description, class_names=names, policy="argmax")
    network = PixelNetwork(model.network, description.input).to(device)
    gates = dict(named_gates(network))
    flops = count_flops(model.network, description.input.size)
    if gates:
        config.budget.check(flops)
    dense = strip(copy.deepcopy(model.network)) if teacher is None else teacher
    guide = PixelNetwork(dense, description.input).to(device).eval().requires_grad_(False)
    guided = guide if config.distill else None
    objective = Objective(config, gates, flops, guided, config.epochs * len(train)).to(device)
    trainer = _Trainer(network, objective, config, len(train))
    metrics: list[dict[str, Any]] = []
    if resume:
        state = folder.read_state(config)
        trainer.load_state(state)
        metrics = state["metrics"]
    else:
        folder.clear()
        folder.write_config(config, context or {})
        if gates:
            save_model(folder.dense, dense, description)

    def save() -> None:
        folder.write_state(trainer.state() | {"metrics": metrics})

    save()
    with _deferred_interrupt() as interrupted:
        while trainer.epoch <= config.epochs:
            row = trainer.train_epoch(train, on_step, save, interrupted)
            with _kept_thresholds(network):
                row |= _validate(network, val, flops, config)
                row["best"] = row["val_top1"] >= max((r["val_top1"] for r in metrics), default=0)
                metrics.append(row)
                if row["best"]:
                    save_model(folder.best, model.network, _told(description, row, config))
            folder.write_metrics(metrics)
            trainer.start_epoch(trainer.epoch + 1)
            save()
            on_epoch(row)

    best = [row for row in metrics if row["best"]][-1]
    model.network.load_state_dict(safetensors.torch.load_file(folder.best))
    measure_expected_rates(
        network,
        load_batches(
            train, batch_size=config.batch_size, workers=config.workers, shuffle_seed=config.seed
        ),
    )
    set_policy(network, "argmax")
    done = Model(model.network.eval(), _told(description, best, config))
    save_model(folder.best, done.network, done.description)
    return FinetuneResult(done, best["epoch"], metrics)


def _validate(
    network: PixelNetwork, val: ImageSet, flops: NetworkFlops, config: FinetuneConfig
) -> dict[str, Any]:
    """Set the thresholds to the budget and measure with them; also say what it was without."""
    row: dict[str, Any] = {}
    size, workers = config.batch_size, config.workers
    if flops.gated_blocks:
        chosen = val.limited(CALIBRATION_IMAGES)
        found = calibrate(network, chosen, config.budget, flops, batch_size=size, workers=workers)
        row |= {"threshold_shift": found.shift, "val_uncalibrated": found.before}
    trace = collect_trace(network, val, flops=flops, batch_size=size, workers=workers)
    summary = trace.summary()
    row |= {f"val_{name}": summary[name] for name in _MEASURED}
    row["val_loss"] = float(trace.images["loss"].mean())
    return row | {f"rate.{gate['name']}": gate["rate"] for gate in summary["gates"]}


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


def _told(description: Description, row: dict[str, Any], config: FinetuneConfig) -> Description:
    """Return the description of an epoch's network."""
    budget = config.budget
    names = ("val_correct", "val_images", "val_execution_rate", "val_flops_fraction")
    return description.after(
        "finetune",
        epoch=row["epoch"],
        target=config.target,
        **{f"target_{budget.unit}": budget.share},
        **{name: row[name] for name in names},
    )


@contextmanager
def _kept_thresholds(network: nn.Module) -> Iterator[None]:
    before = [(gate, gate.threshold.clone()) for _, gate in named_gates(network)]
    try:
        yield
    finally:
        for gate, threshold in before:
            gate.threshold.copy_(threshold)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait until a step is done; a second one does not wait."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


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
    """The network, its objective and its optimiser; one pass over the images at a time."""

    def __init__(
        self, network: PixelNetwork, objective: Objective, config: FinetuneConfig, images: int
    ) -> None:
        if images < 1:
            raise UserError("no training images: expected at least one")
        self.network = network
        self.objective = objective
        self.config = config
        self.gates = dict(named_gates(network))
        if config.train == "gates":
            network.requires_grad_(False)
            for gate in self.gates.values():
                gate.requires_grad_(True)
        self.batches = count_batches(images, config.batch_size)
        self.steps = math.ceil(self.batches / config.grad_accum_steps)
        self.optimizer, self.scheduler = make_optimizer(network, config, self.steps)
        self.done = 0
        self.start_epoch(1)

    def start_epoch(self, epoch: int) -> None:
        """Begin an epoch's means anew."""
        self.epoch = epoch
        self.batch = 0
        self.seen = 0
        self.seconds = 0.0
        self.sums = dict.fromkeys(_SUMS, 0.0)

    def train_epoch(
        self,
        images: ImageSet,
        on_step: Callable[[StepReport], None],
        save: Callable[[], None],
        interrupted: Callable[[], bool],
    ) -> dict[str, Any]:
        """Take one pass over the images, or the rest of one, and return the epoch's metrics."""
        config, device = self.config, self.network.mean.device
        self._set_modes()
        saved = start = time.monotonic()
        batches = load_batches(
            images,
            batch_size=config.batch_size,
            workers=config.workers,
            shuffle_seed=config.seed * 100_003 + self.epoch,
            start=self.batch,
            pin_memory=device.type == "cuda",
        )
        for number, batch in enumerate(batches, self.batch + 1):
            pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            self._take_in(pixels, labels, number)
            if number % config.grad_accum_steps and number < self.batches:
                continue
            self._step()
            self.batch = number
            now = time.monotonic()
            self.seconds += now - start
            start = now
            on_step(self._report())
            if interrupted():
                save()
                raise KeyboardInterrupt
            if now - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
        means = self._means()
        return {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "noise": next(iter(self.gates.values())).noise if self.gates else 0.0,
            "train_loss": means["loss"],
            "train_rate_loss": means["rate_loss"],
            "train_top1": 100 * means["correct"],
            "train_execution_rate": means["execution_rate"],
            "train_argmax_rate": means["argmax_rate"],
            "train_images_per_second": self.seen / self.seconds,
        }

    def _set_modes(self) -> None:
        self.network.train(self.config.train == "all")
        for gate in self.gates.values():
            gate.train()

    def _take_in(self, pixels: Tensor, labels: Tensor, number: int) -> None:
        """Add a minibatch's gradient."""
        every = self.config.grad_accum_steps
        together = min(every, self.batches - (number - 1) // every * every)
        progress = self.done / max(self.steps * self.config.epochs - 1, 1)
        for gate in self.gates.values():
            gate.noise = noise_at(progress, self.config.noise_hold, self.config.noise_end)
        with recorded_decisions(self.network) as decisions:
            logits = self.network(pixels)
        terms = self.objective(pixels, labels, logits, decisions)
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(
                f"the loss is {values['loss']} at epoch {self.epoch}, step {self.done + 1}: try a "
                "lower --lr or --gate-lr; the files of the epochs before it are kept"
            )
        (terms["loss"] / together).backward()
        self.seen += len(labels)
        for name, value in values.items():
            self.sums[name] += value * (1 if name == "correct" else len(labels))

    def _step(self) -> None:
        self.scheduler.step_update(self.done)
        if self.config.clip_grad:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1

    def _means(self) -> dict[str, float]:
        return {name: value / self.seen for name, value in self.sums.items()}

    def _report(self) -> StepReport:
        means = self._means()
        return StepReport(
            epoch=self.epoch,
            step=math.ceil(self.batch / self.config.grad_accum_steps),
            steps=self.steps,
            images=self.seen,
            loss=means["loss"],
            top1=100 * means["correct"],
            execution_rate=means["execution_rate"],
            images_per_second=self.seen / self.seconds,
        )

    def state(self) -> dict[str, Any]:
        """Return all state between two steps, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in _PLACE},
            "network": self.network.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if self.network.mean.is_cuda else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.network.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        for name in _PLACE:
            setattr(self, name, state[name])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"]:
            torch.cuda.set_rng_state_all(state["rng_cuda"])


_SUMS = ("loss", "rate_loss", "correct", "execution_rate", "argmax_rate")
_PLACE = ("epoch", "batch", "done", "seen", "seconds", "sums")
