"""What of a run's options holds for a network, and which it must refuse."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from aigtool.conversion import named_gates
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.files import Model
from aigtool.selection import parse_targets
from aigtool.training.config import TARGET_RATE, FinetuneConfig
from aigtool.training.hints import shared_places, stage_ends
from aigtool.training.optimization import make_optimizer
from aigtool.training.trainer import is_trained


def complete(
    config: FinetuneConfig, model: Model, teacher: Model | None, places: Sequence[str]
) -> FinetuneConfig:
    """Return options with what holds for this network where nothing is given.

    Args:
        config: As given.
        model: To be trained.
        teacher: To learn from, if not the network before gating.
        places: ``places_of`` them.
    """
    own = [gate.target for _, gate in named_gates(model.network)]
    if config.is_per_layer and config.targets is None and own and None not in own:
        if config.target_rate is not None:
            raise UserError(
                f"target rate {config.target_rate:g} with target per-layer: every gate of the "
                "network has a target of its own, which convert --targets gave it; leave the rate "
                "out, or give targets"
            )
    elif config.target_rate is None and config.target_flops is None and config.targets is None:
        config = replace(config, target_rate=TARGET_RATE)
    can_distill = teacher is not None or not model.description.new_classifier
    if config.hints and not places:
        raise UserError(
            f"hints {config.hints:g}: the network to learn from has other stages, or none; "
            "expected the network before gating, or hints 0"
        )
    gates = [gate for _, gate in named_gates(model.network)]
    are_fresh = bool(gates) and all(gate.is_fresh for gate in gates)
    # The loss of a new classifier tells nothing of blocks.
    can_spare = are_fresh and not model.description.new_classifier
    return config.completed(can_distill, is_trained(model.network), bool(places), can_spare)


def places_of(model: Model, teacher: Model | None) -> list[str]:
    """Return where the network and what it learns from have the same features."""
    size = model.description.input.size
    if teacher is None:
        return stage_ends(model.network, size)
    return shared_places(model.network, teacher.network, size)


def check_options(model: Model, config: FinetuneConfig, teacher: Model | None = None) -> None:
    """Refuse options that a network cannot be trained with, before any image is read.

    Args:
        model: As for ``finetune``; left as it is.
        config: As given.
        teacher: As for ``finetune``.

    Raises:
        UserError: ``finetune`` would refuse them in a new run.
    """
    config = complete(config, model, teacher, places_of(model, teacher))
    flops = count_flops(model.network, model.description.input.size)
    if flops.gated_blocks:
        config.budget.check(flops)
        _parsed_targets(config, len(flops.gated_blocks))
        if config.gate_start == "pattern":
            check_fresh(model)
    make_optimizer(model.network, config, steps=1)


def check_fresh(model: Model) -> None:
    """Refuse to let gates start at a pattern that are no new ones."""
    if not all(gate.is_fresh for _, gate in named_gates(model.network)):
        raise UserError(
            "gate start pattern: the network's gates were trained, or given thresholds; expected "
            "new ones, as convert makes them, or gate start given"
        )


def set_targets(network: nn.Module, config: FinetuneConfig) -> None:
    """Give each gate the target of its own that the options name; none, if they name none."""
    gates = dict(named_gates(network))
    if not config.is_per_layer:
        for gate in gates.values():
            gate.target = None
    if targets := _parsed_targets(config, len(gates)):
        for gate, target in zip(gates.values(), targets, strict=True):
            gate.target = target


def _parsed_targets(config: FinetuneConfig, gates: int) -> list[float]:
    if config.targets is None:
        return []
    targets = parse_targets(config.targets)
    if len(targets) != gates:
        raise UserError(
            f"targets given: {len(targets)}; gates: {gates}; expected one a gate, in order"
        )
    return targets
