"""What a fine-tuning run can be told."""

from dataclasses import dataclass
from typing import Literal, get_args

from aigtool.errors import UserError

Target = Literal["network", "per-layer"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of ``finetune``.

    Attributes:
        target_rate: The wanted mean execution rate over gates.
        target: Whether the loss holds the mean over the network to the target, or each layer.
        rate_weight: Weight of the target-rate loss beside cross entropy.
        epochs: Passes over the training images.
        batch_size: Images a step.
        opt: timm's name of the optimiser.
        lr: Learning rate of the network.
        gate_lr: Learning rate of the gates.
        momentum: Of the optimiser.
        weight_decay: Of the network's weights; gates, norms and biases have none.
        sched: timm's name of the learning-rate schedule.
        warmup_epochs: Epochs over which the learning rates rise from zero.
        noise_hold: Share of the run with full Gumbel noise; from there it falls linearly to zero,
            so that gates end deterministic.
        distill: Weight of the distillation loss against cross entropy, 0..1.
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
    """

    target_rate: float = 0.6
    target: Target = "network"
    rate_weight: float = 30.0
    epochs: int = 15
    batch_size: int = 128
    opt: str = "sgd"
    lr: float = 0.01
    gate_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    warmup_epochs: int = 0
    noise_hold: float = 0.5
    distill: float = 0.5
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target_rate < 1:
            raise UserError(
                f"target rate {self.target_rate:g}: expected a number above 0 and below 1, "
                "such as 0.6"
            )
        if self.target not in TARGETS:
            raise UserError(f"target {self.target!r}: expected one of {', '.join(TARGETS)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}: expected a whole number of "
                    "at least 1"
                )
        for name in ("lr", "gate_lr", "rate_weight", "momentum", "weight_decay", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"{name.replace('_', ' ')} {getattr(self, name):g}: expected 0 or more"
                )
        for name in ("noise_hold", "distill"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"{name.replace('_', ' ')} {getattr(self, name):g}: expected 0 to 1"
                )


def noise_at(progress: float, hold: float) -> float:
    """Return the strength of the Gumbel noise after a share ``progress`` of the run.

    Example:
        >>> [noise_at(progress, 0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    return 1.0 if progress <= hold else (1.0 - progress) / (1.0 - hold)
