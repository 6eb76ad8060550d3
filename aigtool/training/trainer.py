"""Training steps: one pass over the images at a time, and all state to go on from."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from aigtool.conversion import named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.data.loading import count_batches, load_batches
from aigtool.errors import NonFiniteLossError, UserError
from aigtool.gates import Decision
from aigtool.models.description import PixelNetwork
from aigtool.training.capture import Captured
from aigtool.training.compiling import CompiledBranches
from aigtool.training.config import FinetuneConfig, noise_at, temperature_at
from aigtool.training.mixing import make_mixing
from aigtool.training.objective import Objective
from aigtool.training.optimization import make_optimizer, settle_gates, zero_gradients
from aigtool.training.processes import ALONE, Processes

SAVE_SECONDS = 240.0
"""All state is saved when a step ends this long after the last time, and after each epoch."""


@dataclass(frozen=True)
class Networks:
    """What a run trains, keeps and learns from; all take pixels and lie on one device.

    Attributes:
        trained: The network that training steps run.
        kept: The one that is validated and saved; it has the same weights, and is ``trained``
            itself but for a baseline that trains in another way than it is used.
        teacher: The network before gating, frozen.
        classes: Outputs of each.
        places: Names of modules of ``trained`` and ``teacher`` whose features are comparable.
    """

    trained: PixelNetwork
    kept: PixelNetwork
    teacher: PixelNetwork
    classes: int
    places: list[str]


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


class Trainer:
    """The network, its objective and its optimiser; one pass over the images at a time.

    Args:
        networks: What is trained, and what is kept of it.
        objective: What a step minimises.
        config: Options.
        images: Images an epoch.
        processes: Those that train the network together.
    """

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        config: FinetuneConfig,
        images: int,
        processes: Processes = ALONE,
    ) -> None:
        if images < 1:
            raise UserError("no training images: expected at least one")
        processes.check_images(images, config.aug_repeats)
        self.processes = processes
        self.trained, self.network = networks.trained, networks.kept
        self.objective = objective
        self.config = config
        self.device = self.network.mean.device
        self.on_cuda = self.device.type == "cuda"
        self.gates = dict(named_gates(self.network))
        processes.check_batch(config.batch_size, config.aug_repeats)
        shared = config.batch_size, config.aug_repeats, processes.count
        self.batches = count_batches(images, *shared)
        self.steps = math.ceil(self.batches / config.grad_accum_steps)
        self.optimizer, self.scheduler = make_optimizer(self.network, config, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp_dtype == "float16")
        decay = config.model_ema_decay
        self.average = ModelEmaV3(self.network, decay, use_warmup=True) if decay else None
        self.mix = make_mixing(config.mixup, config.cutmix, networks.classes)
        self.forward: Callable[[Tensor], Tensor] = self.trained
        self.branches: CompiledBranches | None = None
        if config.compile:
            self.forward = torch.compile(self.trained)
        if config.compile and self.on_cuda:
            self.branches = CompiledBranches(self.trained)
            objective.gate_terms = torch.compile(objective.gate_terms, dynamic=False)  # type: ignore[method-assign]
        self.decisions: dict[str, Decision] = {}
        self.noise, self.temperature, self.together = torch.ones(3, device=self.device).unbind()
        for gate in self.gates.values():
            gate.noise, gate.temperature = self.noise, self.temperature
        self.settled = False
        self.gradient = self._captured()
        self.done = 0
        self.start_epoch(1)

    @property
    def judged(self) -> PixelNetwork:
        """The network that is validated: the one with the averaged weights, where there is one."""
        return self.network if self.average is None else cast(PixelNetwork, self.average.module)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the decisions of training steps; a compiled network wants that from the first.

        Weights that are frozen for the run can be trained again afterwards.
        """
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        if self.config.train == "gates":
            self.network.requires_grad_(False)
            for gate in self.gates.values():
                gate.requires_grad_(True)
        try:
            with (
                recorded_decisions(self.trained) as self.decisions,
                self.objective.watching(self.trained),
                self.processes.sharing(gate.norm for gate in self.gates.values()),
            ):
                yield
        finally:
            for weight in trainable:
                weight.requires_grad_(True)

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
        config, device = self.config, self.device
        self._set_modes()
        saved = start = time.monotonic()
        batches = load_batches(
            images,
            batch_size=config.batch_size,
            workers=config.workers,
            shuffle_seed=config.seed * 100_003 + self.epoch,
            repeats=config.aug_repeats,
            start=self.batch,
            part=(self.processes.rank, self.processes.count),
            pin_memory=self.on_cuda,
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
            stops, is_due = self.processes.any(interrupted(), now - saved > SAVE_SECONDS)
            if stops or is_due:
                self._check_finite()
                save()
                saved = time.monotonic()
            if stops:
                raise KeyboardInterrupt
        self._check_finite()
        save()
        means, last = self._means(), self._progress(self.done - 1)
        return {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "noise": noise_at(last, config.noise_hold, config.noise_end) if self.gates else 0.0,
            "train_loss": means["loss"],
            "train_rate_loss": means["rate_loss"],
            "train_top1": 100 * means["correct"],
            "train_execution_rate": means["execution_rate"],
            "train_argmax_rate": means["argmax_rate"],
            "train_images_per_second": self.seen / self.seconds,
        }

    def _check_finite(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise NonFiniteLossError(
                f"the weights are not finite at epoch {self.epoch}, step {self.done}: try a "
                "lower --lr or --gate-lr; what was saved before is kept"
            )

    def _progress(self, done: int) -> float:
        return done / max(self.steps * self.config.epochs - 1, 1)

    def _set_modes(self) -> None:
        self.trained.train(self.config.train == "all")
        if self.config.norm_statistics == "kept":
            for norm in batch_norms(self.trained):
                norm.eval()
        for gate in self.gates.values():
            gate.train()

    def _take_in(self, pixels: Tensor, labels: Tensor, number: int) -> None:
        """Add a minibatch's gradient."""
        self._advance(number)
        terms = self.gradient(*self.mix(pixels, labels))
        self.processes.average([terms])
        values = dict(zip(_SUMS, terms.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(
                f"the loss is {values['loss']} at epoch {self.epoch}, step {self.done + 1}: try a "
                "lower --lr or --gate-lr; the files of the epochs before it are kept"
            )
        images = len(labels) * self.processes.count
        self.seen += images
        for name, value in values.items():
            self.sums[name] += value * (self.processes.count if name == "correct" else images)

    def _advance(self, number: int) -> None:
        """Set what a minibatch's gradient depends on besides its images."""
        config, progress = self.config, self._progress(self.done)
        every = config.grad_accum_steps
        self.together.fill_(min(every, self.batches - (number - 1) // every * every))
        self.noise.fill_(noise_at(progress, config.noise_hold, config.noise_end))
        start, end = config.gate_temperature, config.gate_temperature_end
        self.temperature.fill_(temperature_at(progress, start, end, config.noise_end))
        self.objective.advance(progress)
        settled = bool(self.gates) and progress >= (config.gate_settle or 1.0)
        if settled != self.settled:
            self.settled = settled
            self.gradient = self._captured()
        for gate in self.gates.values():
            gate.norm.train(not settled)

    def _captured(self) -> Callable[[Tensor, Tensor], Tensor]:
        # What processes send to one another is not recorded.
        is_whole = self.on_cuda and self.processes.count == 1
        return Captured(self._gradient, self.device) if is_whole else self._gradient

    def _gradient(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Add a minibatch's gradient, and return what the objective says, ``(len(_SUMS),)``."""
        dtype = self.config.amp_dtype
        with (
            torch.autocast(self.device.type, getattr(torch, dtype), enabled=dtype != "float32"),
            self.branches.in_place() if self.branches else nullcontext(),
        ):
            terms = self.objective(pixels, labels, self.forward(pixels), self.decisions)
        self.objective.backward(terms, self.scaler.scale(1 / self.together))
        self.decisions.clear()  # They hold the graph, and with it the streams that it ran on.
        return torch.stack([terms[name].detach() for name in _SUMS])

    def _step(self) -> None:
        self.scheduler.step_update(self.done)
        settle_gates(self.optimizer, self.config, self._progress(self.done))
        self.processes.average_gradients(self.network)
        if self.config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.on_cuda:
            zero_gradients(self.optimizer)  # A CUDA graph adds to them where they lie.
        else:
            self.optimizer.zero_grad()
        self.done += 1
        if self.processes.count > 1:
            self.processes.average(self._learned_statistics())
        if self.average is not None:
            self.average.update(self.network, step=self.done)

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
            "scaler": self.scaler.state_dict(),
            "average": {} if self.average is None else self.average.module.state_dict(),
            "generators": self.processes.of_all((torch.get_rng_state(), self._device_rng_state())),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.network.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for name in _PLACE:
            setattr(self, name, state[name])
        own, drawn = state["generators"][self.processes.rank]
        torch.set_rng_state(own)
        if drawn is not None and self.on_cuda:
            torch.cuda.set_rng_state(drawn, self.device)
        elif drawn is not None and self.device.type == "mps":
            torch.mps.set_rng_state(drawn)

    def _learned_statistics(self) -> list[Tensor]:
        """Return those that norms took from the part of a minibatch that this process had."""
        names = ("running_mean", "running_var")
        learning = (norm for norm in batch_norms(self.trained) if norm.training)
        found = (getattr(norm, name, None) for norm in learning for name in names)
        return [statistic for statistic in found if statistic is not None]

    def _device_rng_state(self) -> Tensor | None:
        """Return the state of the device's own generator, which gates' noise is drawn from."""
        if self.on_cuda:
            return torch.cuda.get_rng_state(self.device)
        return torch.mps.get_rng_state() if self.device.type == "mps" else None


def batch_norms(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the norms with running statistics, but for those of gates."""
    of_gates = {gate.norm for _, gate in named_gates(network)}
    for module in network.modules():
        if getattr(module, "running_var", None) is not None and module not in of_gates:
            yield module


def is_trained(network: nn.Module) -> bool:
    """Tell whether a batch norm has other statistics than a fresh one.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> before = is_trained(norm)
        >>> _ = norm(torch.randn(8, 3, 4, 4))
        >>> before, is_trained(norm)
        (False, True)
    """
    variances = (cast(Tensor, norm.running_var) for norm in batch_norms(network))
    return any(bool(variance.ne(1).any()) for variance in variances)


_SUMS = ("loss", "rate_loss", "correct", "execution_rate", "argmax_rate")
_PLACE = ("epoch", "batch", "done", "seen", "seconds", "sums")
