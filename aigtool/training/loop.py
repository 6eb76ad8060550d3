"""Fine-tuning: the passes over the images, what is measured after each, and going on later."""

import copy
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from timm.utils import random_seed
from torch import Tensor

from aigtool.budget import Budget
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
from aigtool.training.baseline import dropping_blocks
from aigtool.training.config import FinetuneConfig
from aigtool.training.judging import Judge
from aigtool.training.objective import Objective
from aigtool.training.options import check_fresh, complete, places_of, set_targets
from aigtool.training.pattern import skip_least, start_without
from aigtool.training.processes import Processes
from aigtool.training.run_folder import RunFolder
from aigtool.training.trainer import Networks, StepReport, Trainer


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

    In a process of PyTorch's process group (``torch.distributed``) it trains with the others, which
    call it with the same arguments: each has its part of every minibatch, and the first one alone
    validates, writes files and calls back. All read ``out`` when a run is resumed.

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
            reached, the teacher is of other classes or images, minibatches cannot be shared out
            among processes, or there is no such run to resume.
    """
    _check(model, val, teacher)
    processes = Processes.here(device)
    callbacks = callbacks if processes.is_first else Callbacks()
    random_seed((config.seed + processes.rank) % 2**32)
    folder = RunFolder(out)
    places = places_of(model, teacher)
    config = complete(folder.begun(config) if resume else config, model, teacher, places)
    description = replace(
        model.description,
        class_names=model.description.class_names or train.classes,
        policy="argmax",
    )
    is_gated = any(named_gates(model.network))
    processes.spread(model.network.to(device))
    before = teacher or _before(model, description, folder if resume and is_gated else None)
    networks, flops = _networks(model, before, config, places)
    network = networks.kept
    objective = Objective(
        config,
        dict(named_gates(network)),
        flops,
        networks.teacher,
        config.looks * len(train),
        classes=networks.classes,
        places=networks.places,
        processes=processes,
    ).to(device)
    budget = objective.budget if config.baseline == "none" else config.budget
    trainer = Trainer(networks, objective, config, len(train), processes)
    judge = Judge(val, objective, flops, description, budget, folder)
    counts = {"train": len(train), "val": len(val)}
    metrics: list[dict[str, Any]] = []
    if resume:
        metrics = _take_up(trainer, folder, folder.read_state(config, context), counts)
    else:
        if is_gated and config.gate_start == "pattern":
            skip = partial(skip_least, model, val, flops, config.budget, callbacks.on_skip)
            check_fresh(model)
            start_without(model.network, processes.by_first(skip))
        begin = partial(folder.begin, config, context or {}, before if is_gated else None)
        processes.by_first(begin)
    earlier = len(metrics)

    def save(*, finished: bool = False) -> None:
        about = {"images": counts, "metrics": metrics, "finished": finished}
        processes.by_first(partial(folder.write_state, trainer.state() | about))

    save()
    with _Interrupts() as interrupts, trainer.recording():
        while trainer.epoch <= config.epochs:
            row = trainer.train_epoch(train, callbacks.on_step, save, interrupts.pressed)
            # All is saved; torchrun does not wait as long as this may take.
            with interrupts.at_once(processes.count > 1):
                row, rates = processes.by_first(partial(judge, trainer.judged, row, metrics))
            metrics.append(row)
            if rates:
                objective.land(rates)
            trainer.start_epoch(trainer.epoch + 1)
            save()
            callbacks.on_epoch(row)
            interrupts.heed(processes)

    epoch = _finished(network, train, folder, config, metrics, processes=processes)
    done = Model(network.network.eval(), judge.told(metrics[epoch - 1]))
    processes.by_first(partial(save_model, folder.best, done.network, done.description))
    save(finished=True)
    return FinetuneResult(done, epoch, metrics, budget, len(metrics) > earlier)


def _check(model: Model, val: ImageSet, teacher: Model | None) -> None:
    if len(val) < 1:
        raise UserError("no validation images: expected at least one to choose the best epoch by")
    if teacher is not None:
        check_comparable(model.description, teacher.description, "to learn from")


def _take_up(
    trainer: Trainer, folder: RunFolder, state: dict[str, Any], counts: dict[str, int]
) -> list[dict[str, Any]]:
    """Go on from a run's state, if it is that of this network and these images."""
    if state["images"] != counts:
        raise UserError(
            f"run folder {folder.path} was started with {_images(state['images'])}, not with "
            f"{_images(counts)}: resume it with the same, or start a new run"
        )
    begun, here = len(state.get("generators", ())), trainer.processes.count
    if begun and begun != here:
        raise UserError(
            f"run folder {folder.path} was started in processes: {begun}, not {here}; resume it "
            "in as many, or start a new run"
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


def _finished(
    network: PixelNetwork,
    train: ImageSet,
    folder: RunFolder,
    config: FinetuneConfig,
    metrics: list[dict[str, Any]],
    *,
    processes: Processes,
) -> int:
    """Take up the best epoch again, give its gates their mean execution rates, and return it."""
    best: int = [row["epoch"] for row in metrics if row["best"]][-1]

    def take_up() -> None:
        network.network.load_state_dict(safetensors.torch.load_file(folder.best))

    processes.by_first(take_up)
    processes.spread(network.network)
    batches = load_batches(
        train,
        batch_size=config.batch_size,
        workers=config.workers,
        shuffle_seed=config.seed,
        part=(processes.rank, processes.count),
    )
    with seeded(config.seed + processes.rank, "expected rates", device=network.mean.device):
        measure_expected_rates(network, batches)
    processes.average([gate.expected_rate for _, gate in named_gates(network)])
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


class _Interrupts:
    """Lets Ctrl-C wait, within, until a step is done; a second one does not wait."""

    def __init__(self) -> None:
        self._is_pressed = self._is_at_once = False
        self._before: Any = None

    def pressed(self) -> bool:
        """Whether it is waited with."""
        return self._is_pressed

    def heed(self, processes: Processes) -> None:
        """Stop, if it was pressed in any process."""
        if any(processes.any(self._is_pressed)):
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self, wanted: bool) -> Iterator[None]:
        """Let it not wait, if wanted, for as long as the block lasts."""
        self._is_at_once = wanted
        yield
        self._is_at_once = False

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._is_pressed or self._is_at_once:
            signal.default_int_handler(number, frame)
        self._is_pressed = True


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
