"""Optimiser and learning-rate schedule, by timm's names."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from aigtool.conversion import named_gates
from aigtool.errors import UserError
from aigtool.training.config import FinetuneConfig


def make_optimizer(
    network: nn.Module, config: FinetuneConfig, steps: int
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Make the optimiser and its schedule.

    Args:
        network: Its gates have a learning rate of their own.
        config: Options.
        steps: Steps an epoch.

    Raises:
        UserError: timm cannot make them, or the optimiser is one whose learning rate must be told.
    """
    if config.lr is None and config.opt.lower().removeprefix("lookahead_") in list_optimizers():
        raise UserError(
            f"optimiser {config.opt!r} without a learning rate: only those of SGD, Adam and their "
            "kin are known; give --lr"
        )
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
            warmup_lr=0.0,
            min_lr=0.0,
            **_falls(config),
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


def settle_gates(optimizer: torch.optim.Optimizer, config: FinetuneConfig, progress: float) -> None:
    """Lower the gates' learning rate to that of the network, as a cosine, over ``gate_settle``.

    Gates that still move are a target that moves for the network: it learns fastest once they have
    settled, and should have much of its learning rate left then.

    Args:
        optimizer: Of ``make_optimizer``, with the learning rates that the schedule set.
        config: Completed options.
        progress: How much of the run is done, 0..1.
    """
    group = optimizer.param_groups[-1]
    if not (group.get("of_gates") and config.lr and config.gate_lr and config.gate_settle):
        return
    left = (1 + math.cos(math.pi * min(1.0, progress / config.gate_settle))) / 2
    last = min(1.0, config.lr / config.gate_lr)
    group["lr"] *= last + (1 - last) * left


def zero_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Set all gradients to zero where they lie, in few launches of a GPU.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.sum().backward()
        >>> zero_gradients(torch.optim.SGD([weight]))
        >>> weight.grad
        tensor([0., 0.])
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if gradients:
        torch._foreach_zero_(gradients)


def _falls(config: FinetuneConfig) -> dict[str, Any]:
    """Return how some schedules fall: timm's defaults are for 300 epochs, or hardly fall."""
    if config.sched == "step":
        return {"decay_epochs": config.epochs / 3}
    if config.sched == "multistep":
        return {"decay_milestones": [config.epochs / 2, 3 * config.epochs / 4]}
    if config.sched == "poly":
        return {"decay_rate": 1.0}  # the power
    return {}


def _parameter_groups(network: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    of_gates = [p for _, gate in named_gates(network) for p in gate.parameters()]
    members = set(of_gates)
    others = [p for p in network.parameters() if p not in members and p.requires_grad]
    own = others if config.train == "all" else []
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        {"params": of_gates, "weight_decay": 0.0, "lr": config.gate_lr, "of_gates": True},
    ]
    return [group for group in groups if group["params"]]
