"""Fine-tuning: the passes over the images, what is measured after each, and going on later."""

import copy
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from timm.utils import random_seed
from torch import Tensor

from aigtool.budget import Budget
from aigtool.calibration import calibrate, calibrate_each, kept_thresholds
from aigtool.conversion import (
    gate_policy,
    named_gates,
    recorded_decisions,
    set_policy,
)
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.data.seeding import seeded
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops, count_flops
from aigtool.models.description import Description, PixelNetwork
from aigtool.models.files import Model, check_comparable, save_model
from aigtool.modes import in_mode
from aigtool.trace import collect_trace
from aigtool.training.baseline import dropping_blocks
from aigtool.training.config import FinetuneConfig
from aigtool.training.objective import Objective
from aigtool.training.options import check_fresh, complete, places_of, set_targets
from aigtool.training.pattern import skip_least, start_without
from aigtool.training.run_folder import RunFolder
from aigtool.training.trainer import Networks, StepReport, Trainer

CALIBRATION_IMAGES = 2000
"""Each epoch's thresholds are set on at most so many validation images."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a run ended with.

    Attributes:
        model: The network of the best epoch, and its description.
        epoch: The best epoch, counted from 1.
        metrics: A row an epoch, as in ``metrics.csv``.
        budget: What it was to spend; None without gates, or where their own targets leave it all.
        went_on: Whether an epoch was left to train, or to end: not so where a run is resumed that
            was at its end.
    """

    model: Model
    epoch: int
    metrics: list[dict[str, Any]]
    budget: Budget | None
    went_on: bool


def _unheard(_told: object) -> None: ...


@dataclass(frozen=True)
class Callbacks:
    """What a run calls as it goes.

    Attributes:
        on_skip: Called with each block that gates start by skipping, if they start at a pattern.
        on_step: Called after each step.
        on_epoch: Called with each epoch's metrics.
    """

    on_skip: Callable[[str], None] = _unheard
    on_step: Callable[[StepReport], None] = _unheard
    on_epoch: Callable[[dict[str, Any]], None] = _unheard


def finetune(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    config: FinetuneConfig,
    *,
    out: str | Path,
    teacher: Model | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    context: dict[str, Any] | None = None,
    callbacks: Callbacks = Callbacks(),
) -> FinetuneResult:
    """Fine-tune a gated network to a budget; a network without gates just trains.

    After each epoch the thresholds that keep the network to the budget under the argmax policy
    are looked for on validation images (``calibrate``), and the accuracy is measured with them:
    the best epoch is the last one within a standard error of the highest. Training goes on with
    the thresholds as they were. On one CPU a run that was stopped and resumed ends with the weights
    of one that never was.

    Args:
        model: From ``convert`` or a model file; its network is changed.
        train: Training images, with a training transform.
        val: Validation images, by which thresholds are set and the best epoch is chosen.
        config: Options.
        out: The run folder.
        teacher: The network to distil from, which is frozen; by default the given one as it is
            when the run begins, without gates. It is kept as ``out/dense.safetensors``.
        resume: Whether to go on with the run in ``out``, from the same model, images and options.
        device: Where to train.
        context: What ``config.yaml`` should say besides the options.
        callbacks: What is called as the run goes.

    Returns:
        The best network, which ``out/best.safetensors`` holds.

    Raises:
        NonFiniteLossError: The loss became infinite or not a number.
        UserError: The optimiser or schedule is unknown, there are no images, the budget cannot be
            reached, the teacher is of other classes or images, or there is no such run to resume.
    """
    if len(val) < 1:
        raise UserError("no validation images: expected at least one to choose the best epoch by")
    random_seed(config.seed)
    folder = RunFolder(out)
    if teacher is not None:
        check_comparable(model.description, teacher.description, "to learn from")
    places = places_of(model, teacher)
    config = complete(folder.begun(config) if resume else config, model, teacher, places)
    description = replace(
        model.description,
        class_names=model.description.class_names or train.classes,
        policy="argmax",
    )
    is_gated = any(named_gates(model.network))
    model.network.to(device)
    before = teacher or _before(model, description, folder if resume and is_gated else None)
    networks, flops = _networks(model, before, config, places)
    network = networks.kept
    gates, seen = dict(named_gates(network)), config.looks * len(train)
    objective = Objective(
        config,
        gates,
        flops,
        networks.teacher,
        seen,
        classes=networks.classes,
        places=networks.places,
    ).to(device)
    budget = objective.budget if config.baseline == "none" else config.budget
    trainer = Trainer(networks, objective, config, len(train))
    counts = {"train": len(train), "val": len(val)}
    metrics: list[dict[str, Any]] = []
    if resume:
        metrics = _take_up(trainer, folder, folder.read_state(config, context), counts)
    else:
        if is_gated and config.gate_start == "pattern":
            _start_at_pattern(model, val, flops, config.budget, callbacks.on_skip)
        folder.begin(config, context or {}, before if is_gated else None)

    earlier = len(metrics)

    def save(*, finished: bool = False) -> None:
        about = {"images": counts, "metrics": metrics, "finished": finished}
        folder.write_state(trainer.state() | about)

    save()
    with _deferred_interrupt() as interrupted, trainer.recording():
        while trainer.epoch <= config.epochs:
            row = trainer.train_epoch(train, callbacks.on_step, save, interrupted)
            judged = trainer.judged
            with kept_thresholds(judged):
                row |= _validate(judged, val, objective, flops)
                metrics.append(row)
                row["best"] = is_best(metrics)
                if row["best"]:
                    save_model(folder.best, judged.network, _told(description, row, config, budget))
            folder.write_metrics(metrics)
            trainer.start_epoch(trainer.epoch + 1)
            save()
            callbacks.on_epoch(row)

    epoch = _finished(network, train, folder, config, metrics)
    done = Model(network.network.eval(), _told(description, metrics[epoch - 1], config, budget))
    save_model(folder.best, done.network, done.description)
    save(finished=True)
    return FinetuneResult(done, epoch, metrics, budget, len(metrics) > earlier)


def _start_at_pattern(
    model: Model,
    val: ImageSet,
    flops: NetworkFlops,
    budget: Budget,
    on_skip: Callable[[str], None],
) -> None:
    """Let gates begin by skipping the blocks that can best be done without."""
    check_fresh(model)
    start_without(model.network, skip_least(model, val, flops, budget, on_skip))


def _take_up(
    trainer: Trainer, folder: RunFolder, state: dict[str, Any], counts: dict[str, int]
) -> list[dict[str, Any]]:
    """Go on from a run's state, if it is that of this network and these images."""
    if state["images"] != counts:
        raise UserError(
            f"run folder {folder.path} was started with {_images(state['images'])}, not with "
            f"{_images(counts)}: resume it with the same, or start a new run"
        )
    with _refusing_another_network(folder):
        trainer.load_state(state)
    metrics: list[dict[str, Any]] = state["metrics"]
    return metrics


@contextmanager
def _refusing_another_network(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"run folder {folder.path} is of another network or version of aigtool: resume "
            "it with the one that it was started with"
        ) from error


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


def _finished(
    network: PixelNetwork,
    train: ImageSet,
    folder: RunFolder,
    config: FinetuneConfig,
    metrics: list[dict[str, Any]],
) -> int:
    """Take up the best epoch again, give its gates their mean execution rates, and return it."""
    best: int = [row["epoch"] for row in metrics if row["best"]][-1]
    network.network.load_state_dict(safetensors.torch.load_file(folder.best))
    batches = load_batches(
        train, batch_size=config.batch_size, workers=config.workers, shuffle_seed=config.seed
    )
    with seeded(config.seed, "expected rates", device=network.mean.device):
        measure_expected_rates(network, batches)
    set_policy(network, "argmax")
    return best


def _before(model: Model, description: Description, begun: RunFolder | None) -> Model:
    """Return the network before gating: as it is now, or as it was when a run began."""
    before = replace(model, network=copy.deepcopy(model.network), description=description)
    before = before.stripped()
    if begun is not None and begun.dense.is_file():
        with _refusing_another_network(begun):
            before.network.load_state_dict(safetensors.torch.load_file(begun.dense))
    return before


def _networks(
    model: Model, before: Model, config: FinetuneConfig, places: Sequence[str]
) -> tuple[Networks, NetworkFlops]:
    """Make what is trained, what is kept and what is learnt from; count what is kept."""
    description = model.description
    trained = model.network
    flops = count_flops(trained, description.input.size)
    if flops.gated_blocks:
        config.budget.check(flops)
        set_targets(trained, config)
        for _, gate in named_gates(trained):
            gate.absorb_threshold()
        set_policy(trained, "argmax")
    if config.baseline == "stochastic-depth":
        if not flops.gated_blocks:
            raise UserError("baseline stochastic-depth: expected a network with gates")
        trained = dropping_blocks(model.network, config.budget.mean_rate(flops))
        model = model.stripped()
        flops = count_flops(model.network, description.input.size)
    device = next(trained.parameters()).device
    trained, kept = (
        PixelNetwork(network, description.input).to(device) for network in (trained, model.network)
    )
    teacher = PixelNetwork(before.network, before.description.input).to(device)
    frozen = teacher.eval().requires_grad_(False)
    shared = [f"network.{name}" for name in places]
    return Networks(trained, kept, frozen, description.num_classes, shared), flops


def _images(counts: dict[str, int]) -> str:
    return f"{counts['train']} images to train on and {counts['val']} to validate on"


def _validate(
    network: PixelNetwork,
    val: ImageSet,
    objective: Objective,
    flops: NetworkFlops,
) -> dict[str, Any]:
    """Set the thresholds to the budget and measure with them; tell the objective what it was."""
    row: dict[str, Any] = {}
    config = objective.config
    size, workers = config.batch_size, config.workers
    if objective.gates:
        how: dict[str, Any] = {"batch_size": size, "workers": workers}
        chosen = val.limited(CALIBRATION_IMAGES)
        if config.is_per_layer:
            found = calibrate_each(network, chosen, objective.layer_targets, **how)
        else:
            found = calibrate(network, chosen, config.budget, flops, quick=True, **how)
        objective.land(found.rates)
        shift = fmean(map(abs, found.shifts))
        row |= {"threshold_shift": shift, "val_uncalibrated": found.before}
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


def _told(
    description: Description, row: dict[str, Any], config: FinetuneConfig, budget: Budget | None
) -> Description:
    """Return the description of an epoch's network; it says what a gated one was asked for."""
    names = ("val_correct", "val_images", "val_execution_rate", "val_flops_fraction")
    asked: dict[str, Any] = {}
    if budget is not None:
        asked = {"target": config.target, f"target_{budget.unit}": budget.share}
    elif row["val_execution_rate"] is not None:
        asked = {"target": config.target, "target_rate": 1.0}
    if config.is_per_layer:
        asked["target"] = "per-layer"
    told = {name: row[name] for name in names}
    return description.after("finetune", epoch=row["epoch"], **asked, **told)


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
    if pressed:
        raise KeyboardInterrupt


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
