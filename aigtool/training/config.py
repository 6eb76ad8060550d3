"""What a fine-tuning run can be told."""

from dataclasses import dataclass
from typing import Literal, get_args

from aigtool.budget import Budget
from aigtool.errors import UserError

Target = Literal["network", "per-layer"]
TARGETS: tuple[Target, ...] = get_args(Target)

TARGET_RATE = 0.6
"""What is asked for where no target is."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of ``finetune``.

    Attributes:
        target_rate: The wanted mean execution rate over gates; 0.6 where no target is given.
        target_flops: The wanted executed GFLOPs over those of the dense network, instead.
        target: Whether the loss holds the mean over the network to the target, or each layer.
        rate_weight: Weight of the target-rate loss beside cross entropy.
        band: Weight of the loss that keeps each gate's rate between ``band_low`` and ``band_high``.
        band_low: Lower end of the band.
        band_high: Upper end of the band.
        information: Weight of the loss that keeps decisions telling images apart.
        rate_window: Images over which rates are averaged for these losses; in a short run fewer.
        epochs: Passes over the training images.
        batch_size: Images a minibatch.
        grad_accum_steps: Minibatches a step.
        clip_grad: The norm that gradients are clipped to; 0 leaves them as they are.
        opt: timm's name of the optimiser.
        lr: Learning rate of the network.
        gate_lr: Learning rate of the gates.
        momentum: Of the optimiser.
        weight_decay: Of the network's weights; gates, norms and biases have none.
        sched: timm's name of the learning-rate schedule.
        warmup_epochs: Epochs over which the learning rates rise from zero.
        noise_hold: Share of the run with full Gumbel noise.
        noise_end: Share of the run at which it has fallen, linearly, to zero, so that gates end
            deterministic.
        distill: Weight of the distillation loss against cross entropy, 0..1.
        distill_temperature: Of both networks' softmax in the distillation loss.
        smoothing: Label smoothing.
        train: Whether to train the whole network or the gates alone.
        seed: Of everything random.
        workers: Processes that read images.

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
    rate_weight: float = 30.0
    band: float = 0.0
    band_low: float = 0.1
    band_high: float = 0.9
    information: float = 0.0
    rate_window: float = 1024.0
    epochs: int = 15
    batch_size: int = 128
    grad_accum_steps: int = 1
    clip_grad: float = 0.0
    opt: str = "sgd"
    lr: float = 0.01
    gate_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    warmup_epochs: int = 0
    noise_hold: float = 0.5
    noise_end: float = 1.0
    distill: float = 0.5
    distill_temperature: float = 1.0
    smoothing: float = 0.0
    train: Literal["all", "gates"] = "all"
    seed: int = 0
    workers: int = 0

    @property
    def budget(self) -> Budget:
        """What the network may spend."""
        if self.target_flops is not None:
            return Budget(self.target_flops, "flops")
        return Budget(TARGET_RATE if self.target_rate is None else self.target_rate)

    def __post_init__(self) -> None:
        if self.target_rate is not None and self.target_flops is not None:
            raise UserError("a target rate and a target in FLOPs were given: expected one of them")
        _ = self.budget
        if self.target not in TARGETS:
            raise UserError(f"target {self.target!r}: expected one of {', '.join(TARGETS)}")
        if self.target == "per-layer" and self.target_flops is not None:
            raise UserError(
                "target per-layer with a target in FLOPs: layers are held to rates; give a target "
                "rate, or hold the network to its FLOPs"
            )
        if self.train not in ("all", "gates"):
            raise UserError(f"train {self.train!r}: expected all or gates")
        for name in ("epochs", "batch_size", "grad_accum_steps"):
            self._check(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("distill_temperature", "rate_window"):
            self._check(name, getattr(self, name) > 0, "a number above 0")
        for name in (
            *("lr", "gate_lr", "rate_weight", "band", "information", "momentum", "weight_decay"),
            *("warmup_epochs", "clip_grad"),
        ):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("noise_hold", "noise_end", "distill", "smoothing", "band_low", "band_high"):
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._check("noise_hold", self.noise_hold <= self.noise_end, "at most the noise's end")
        self._check("band_low", self.band_low <= self.band_high, "at most the band's higher end")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            words = name.replace("_", " ")
            raise UserError(f"{words} {getattr(self, name):g}: expected {expected}")


def noise_at(progress: float, hold: float, end: float = 1.0) -> float:
    """Return the strength of the Gumbel noise after a share ``progress`` of the run.

    Example:
        >>> [noise_at(progress, 0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
        >>> [noise_at(progress, 0.25, 0.75) for progress in (0.25, 0.5, 0.75, 0.9)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return 1.0 if progress <= hold else max(0.0, (end - progress) / (end - hold))
