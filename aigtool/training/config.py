"""What a fine-tuning run can be told."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from aigtool.budget import Budget
from aigtool.errors import UserError

Target = Literal["network", "per-layer"]
Baseline = Literal["none", "stochastic-depth"]
Trained = Literal["all", "gates"]
NormStatistics = Literal["kept", "batch"]
GateStart = Literal["pattern", "given"]
Informed = Literal["image", "class"]
AmpDtype = Literal["float32", "bfloat16", "float16"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "target": get_args(Target),
    "baseline": get_args(Baseline),
    "train": get_args(Trained),
    "norm_statistics": get_args(NormStatistics),
    "gate_start": get_args(GateStart),
    "information_about": get_args(Informed),
    "amp_dtype": get_args(AmpDtype),
}

TARGET_RATE = 0.6
"""What is asked for where no target is."""
LR, LR_IMAGES, GATE_LR = 0.01, 32, 25.0
"""Where none is given: the learning rate, the images a step it is for, what gates have of it."""
_LR_OF = {"adam": 0.03, "sgd": 1.0, "momentum": 1.0, "nesterov": 1.0}
"""Of that learning rate, what optimisers with this in their names take; others must be told."""
DISTILL, HINTS = 0.9, 10.0
"""The weights of distillation and of hints where none are given."""
SETTLE, RAMP = 0.25, 0.15
"""Shares of the run over which gates settle, and the target falls, where none is given."""
COMPLETED = (
    "gate_start",
    "target_ramp",
    "lr",
    "gate_lr",
    "gate_settle",
    "distill",
    "hints",
    "norm_statistics",
)
"""Options that depend on others, or on the network, where nothing is given."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of ``finetune``.

    Attributes:
        target_rate: The mean execution rate over gates to end with; 0.6 where no target is given.
        target_flops: Executed GFLOPs over those of the dense network to end with, instead.
        target: Whether the loss holds the mean over the network to the target, or each gate: to
            its own, where conversion or targets gave it one.
        targets: A rate for each gate, with commas between, or a schedule of the paper such as
            resnet50-eccv:0.5; the loss holds each gate to its own.
        baseline: What to train instead, to compare with: stochastic-depth is the dense network,
            each block of which runs at random at the same rate in training, always afterwards.
        epochs: Passes over the training images.
        batch_size: Images a minibatch.
        aug_repeats: Times that a minibatch holds each of its images, each time augmented anew: an
            epoch takes as many times the steps (batch augmentation, Hoffer et al., CVPR 2020). For
            many training images 1 may do.
        gate_start: Where gates start: pattern is at the budget, most likely to skip the same blocks
            for all images, those without which the loss on validation images is least; given is
            as they are. pattern where the whole network is trained, came trained but for its gates,
            and is held to one target.
        target_ramp: Share of the run over which the target falls to what is asked from 1; 0.15,
            but 0 where gates start at a pattern.
        rate_weight: Weight of the target-rate loss beside cross entropy.
        information: Weight of the loss that keeps decisions telling images apart.
        information_about: What decisions should tell apart: each image from all others, or the
            images of each class, labelled as they are in training, from those of other classes.
        least_information: In nats, what each gate's decisions should tell of that; the loss
            asks for no more. A gate that is certain tells 0.33 when it is open for a tenth of the
            images or for nine tenths, and ln 2, the most, when it is open for half of them.
        informed_share: Share of the gates whose decisions should tell as much; the network chooses
            which, and may execute the blocks of the others for every image, or for none.
        certainty: Weight, as the noise falls, of the loss that makes each decision certain.
        band: Weight of the loss that keeps each gate's rate between band_low and band_high.
        band_low: Lower end of the band.
        band_high: Upper end of the band.
        rate_window: Images over which rates are averaged for these losses; in a short run fewer.
        noise_hold: Share of the run with full Gumbel noise.
        noise_end: Share of the run at which it has fallen, linearly, to zero, so that gates end
            deterministic; 0 is no noise at all.
        gate_temperature: Of the softmax that the gates' gradient is that of, at the start.
        gate_temperature_end: At the end of the noise and after; between, it falls or rises by the
            same factor each step.
        distill: Weight, 0 to 1, of learning from the network before gating; 0.9, but 0 where its
            classifier is new and there is nothing to learn.
        distill_temperature: Of both networks' softmax in that loss.
        hints: Weight of learning that network's features where stages end; 10, but 0 without
            distillation, or where the network to learn from has other stages.
        opt: timm's name of the optimiser.
        lr: Learning rate of the network; 0.01 for 32 images a step, by the square root for others,
            0.03 of that for Adam and its kin; others than these and SGD must be given theirs.
        gate_lr: Learning rate of the gates; 25 times that of the network.
        gate_settle: Share of the run over which gates settle: their learning rate falls to that of
            the network, and then their norms keep their statistics, so that the network learns
            with the gates that it will have; 0.25, but 1 where gates alone are trained.
        momentum: Of the optimiser.
        weight_decay: Of the network's weights; gates, norms and biases have none.
        sched: timm's name of the learning-rate schedule; step falls to a tenth after each third of
            the run, multistep after a half and three quarters, poly along a line.
        warmup_epochs: Epochs over which the learning rates rise from zero.
        grad_accum_steps: Minibatches a step.
        clip_grad: The norm that gradients are clipped to; 0 leaves them as they are.
        model_ema_decay: Share of the averaged weights that a step keeps, such as 0.999; the
            averaged network is then the one that is validated and kept. 0 averages nothing.
        smoothing: Label smoothing.
        mixup: alpha of mixup: two images mixed in shares drawn from Beta(alpha, alpha); 0 is none.
        cutmix: alpha of CutMix, alike; with both, each minibatch draws one of them.
        train: Whether to train the whole network or the gates alone.
        norm_statistics: What batch norms go by in training: kept, the statistics that the network
            came with, as at test time, or batch, those of each minibatch; kept where the network
            came trained. Those of gates are of minibatches.
        amp_dtype: What autocast computes in; float32 is no autocast.
        compile: Whether torch.compile makes the training step faster, after a while of compiling.
        seed: Of everything random.
        workers: Processes that read images, as of ``load_batches``.

    Raises:
        UserError: A value is out of range.

    Example:
        >>> FinetuneConfig(target_rate=1.2)
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: target rate 1.2: expected a number above 0 and below 1, \
such as 0.6
        >>> FinetuneConfig(target_flops=0.5).budget
        Budget(share=0.5, unit='flops')
    """

    target_rate: float | None = None
    target_flops: float | None = None
    target: Target = "network"
    targets: str | None = None
    baseline: Baseline = "none"
    epochs: int = 15
    batch_size: int = 32
    aug_repeats: int = 2
    gate_start: GateStart | None = None
    target_ramp: float | None = None
    rate_weight: float = 100.0
    information: float = 15.0
    information_about: Informed = "class"
    least_information: float = 0.15
    informed_share: float = 0.7
    certainty: float = 5.0
    band: float = 0.0
    band_low: float = 0.1
    band_high: float = 0.9
    rate_window: float = 1024.0
    noise_hold: float = 0.05
    noise_end: float = 0.2
    gate_temperature: float = 1.0
    gate_temperature_end: float = 1.0
    distill: float | None = None
    distill_temperature: float = 4.0
    hints: float | None = None
    opt: str = "sgd"
    lr: float | None = None
    gate_lr: float | None = None
    gate_settle: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    warmup_epochs: int = 0
    grad_accum_steps: int = 1
    clip_grad: float = 5.0
    model_ema_decay: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    train: Trained = "all"
    norm_statistics: NormStatistics | None = None
    amp_dtype: AmpDtype = "float32"
    compile: bool = False
    seed: int = 0
    workers: int | None = 0

    @property
    def budget(self) -> Budget:
        """What the network may spend."""
        if self.target_flops is not None:
            return Budget(self.target_flops, "flops")
        return Budget(TARGET_RATE if self.target_rate is None else self.target_rate)

    @property
    def looks(self) -> int:
        """How often each image is seen."""
        return self.epochs * self.aug_repeats

    @property
    def is_per_layer(self) -> bool:
        """Whether the loss holds each gate to its target."""
        return self.target == "per-layer" or self.targets is not None

    def completed(
        self,
        can_distill: bool,
        is_trained: bool,
        can_hint: bool = True,
        can_spare: bool = True,
    ) -> "FinetuneConfig":
        """Return these options with what holds where nothing is given.

        Args:
            can_distill: Whether there is a network to learn from.
            is_trained: Whether the network's batch norms have statistics to keep.
            can_hint: Whether the network to learn from has the same stages.
            can_spare: Whether it has gates that were not trained, and a classifier that was.

        Example:
            >>> config = FinetuneConfig(batch_size=128)
            >>> config = config.completed(can_distill=True, is_trained=True)
            >>> config.lr, config.gate_lr, config.distill, config.norm_statistics
            (0.02, 0.5, 0.9, 'kept')
        """
        images = self.batch_size * self.grad_accum_steps
        lr, gate_lr = self.lr, self.gate_lr
        if lr is None and (kind := next((k for k in _LR_OF if k in self.opt.lower()), None)):
            lr = LR * _LR_OF[kind] * math.sqrt(images / LR_IMAGES)
        if gate_lr is None and lr is not None:
            gate_lr = GATE_LR * lr
        distill = DISTILL * can_distill if self.distill is None else self.distill
        hints = HINTS * (can_hint and distill > 0) if self.hints is None else self.hints
        settle = SETTLE if self.train == "all" else 1.0
        settle = settle if self.gate_settle is None else self.gate_settle
        spares = is_trained and can_spare and self.train == "all" and self.baseline == "none"
        usual: GateStart = "pattern" if spares and not self.is_per_layer else "given"
        start = self.gate_start or usual
        ramp = RAMP * (start == "given") if self.target_ramp is None else self.target_ramp
        keeps = is_trained or self.train == "gates"
        norms = self.norm_statistics or ("kept" if keeps else "batch")
        return replace(
            self,
            gate_start=start,
            target_ramp=ramp,
            lr=lr,
            gate_lr=gate_lr,
            gate_settle=settle,
            distill=distill,
            hints=hints,
            norm_statistics=norms,
        )

    def __post_init__(self) -> None:
        if self.target_rate is not None and self.target_flops is not None:
            raise UserError("a target rate and a target in FLOPs were given: expected one of them")
        _ = self.budget
        for name, choices in _CHOICES.items():
            if (given := getattr(self, name)) is not None and given not in choices:
                words = name.replace("_", " ")
                raise UserError(f"{words} {given!r}: expected one of {', '.join(choices)}")
        if self.is_per_layer and self.target_flops is not None:
            raise UserError(
                "a target per layer with a target in FLOPs: layers are held to rates; give a "
                "target rate, or hold the network to its FLOPs"
            )
        if self.targets is not None and self.target_rate is not None:
            raise UserError(
                f"a target rate and targets were given: expected one of them; the mean of "
                f"{self.targets} is what the network will spend"
            )
        if self.baseline != "none" and self.train == "gates":
            raise UserError(f"baseline {self.baseline} has no gates: expected train all")
        if self.baseline != "none" and self.is_per_layer:
            raise UserError(
                f"baseline {self.baseline} with targets per layer: all its blocks run at one rate; "
                "give a target rate, or a target in FLOPs"
            )
        if self.gate_start == "pattern" and (self.baseline != "none" or self.is_per_layer):
            other = "targets per layer" if self.is_per_layer else f"baseline {self.baseline}"
            raise UserError(
                f"gate start pattern with {other}: expected gates that are held to one target "
                "together; leave gate start out"
            )
        if self.train == "gates" and self.norm_statistics == "batch":
            raise UserError(
                "norm statistics of minibatches with train gates: a network that is not trained "
                "keeps its own; leave them out, or train all"
            )
        counts = ("epochs", "batch_size", "aug_repeats", "grad_accum_steps")
        self._check(counts, lambda value: value >= 1, "a whole number of at least 1")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"warmup epochs {self.warmup_epochs}, epochs {self.epochs}: expected fewer for "
                "warm-up than in all"
            )
        if self.aug_repeats > self.batch_size:
            raise UserError(
                f"aug repeats {self.aug_repeats}: expected at most the batch size, "
                f"{self.batch_size}, since an image's augmentations share a minibatch; give aug "
                f"repeats {self.batch_size}, or a larger batch"
            )
        temperatures = ("distill_temperature", "gate_temperature", "gate_temperature_end")
        self._check((*temperatures, "rate_window"), lambda value: value > 0, "a number above 0")
        self._check(
            ("least_information",), lambda value: 0 <= value <= math.log(2), "0 to ln 2, 0.693"
        )
        weights = ("rate_weight", "band", "information", "certainty", "hints", "weight_decay")
        mixing = ("mixup", "cutmix")
        steps = ("lr", "gate_lr", "warmup_epochs", "clip_grad", "workers")
        self._check((*weights, *mixing, *steps), lambda value: value >= 0, "0 or more")
        shares = (
            "informed_share",
            "noise_hold",
            "noise_end",
            "target_ramp",
            "distill",
            "smoothing",
            "band_low",
            "band_high",
        )
        self._check(shares, lambda value: 0 <= value <= 1, "0 to 1")
        self._check(("gate_settle",), lambda value: 0 < value <= 1, "above 0, and 1 at most")
        self._check(("seed",), lambda value: 0 <= value < 2**32, "0 to 4294967295")
        decays = ("model_ema_decay", "momentum")
        self._check(decays, lambda value: 0 <= value < 1, "0 or more, and under 1")
        ends = self.noise_end, self.band_high
        self._check(("noise_hold",), lambda value: value <= ends[0], f"at most noise end {ends[0]}")
        self._check(("band_low",), lambda value: value <= ends[1], f"at most band high {ends[1]}")

    def _check(self, names: tuple[str, ...], holds: Callable[[float], bool], expected: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise UserError(f"{name.replace('_', ' ')} {value:g}: expected {expected}")


def read_settings(file: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run.

    Raises:
        UserError: It is none.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML, as aigtool finetune writes it: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("options"), dict):
        raise UserError(f"{file} has no options: expected what aigtool finetune wrote")
    return values


def noise_at(progress: float, hold: float, end: float = 1.0) -> float:
    """Return the strength of the Gumbel noise after a share ``progress`` of the run.

    Example:
        >>> [noise_at(progress, 0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
        >>> [noise_at(progress, 0.25, 0.75) for progress in (0.25, 0.5, 0.75, 0.9)]
        [1.0, 0.5, 0.0, 0.0]
    """
    if progress <= hold and end > 0:
        return 1.0
    return 0.0 if progress >= end else (end - progress) / (end - hold)


def temperature_at(progress: float, start: float, final: float, end: float = 1.0) -> float:
    """Return the temperature of the gates' gradient after a share ``progress`` of the run.

    Args:
        progress: 0..1.
        start: The temperature at 0.
        final: The temperature at ``end`` and after.
        end: Share of the run at which it is reached.

    Example:
        >>> [temperature_at(progress, 4.0, 1.0, end=0.5) for progress in (0.0, 0.25, 0.5, 1.0)]
        [4.0, 2.0, 1.0, 1.0]
    """
    passed = min(1.0, progress / end if end else 1.0)
    return start * math.exp(passed * math.log(final / start))
