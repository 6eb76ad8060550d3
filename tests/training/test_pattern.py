"""The blocks that a network can best do without, and gates that start by skipping them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from aigtool.budget import Budget, Unit
from aigtool.conversion import named_gates, set_policy
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model
from aigtool.training.loop import Callbacks, finetune
from aigtool.training.pattern import skip_least
from tests.training.small import FAST


@torch.inference_mode()
def loss_without(model: Model, images: ImageSet, skipped: list[str]) -> float:
    """The mean loss of the network as it is, these gates closed and the others open."""
    network = PixelNetwork(copy.deepcopy(model.network), model.description.input).eval()
    set_policy(network, "open")
    for name, gate in named_gates(network.network):
        if name in skipped:
            gate.policy = "closed"
    losses = [F.cross_entropy(network(x), y, reduction="sum") for x, y in load_batches(images)]
    return float(sum(losses)) / len(images)


@pytest.mark.parametrize(("share", "unit"), [(0.5, "rate"), (0.7, "rate"), (0.6, "flops")])
def test_blocks_go_until_the_budget_is_met(
    model: Model, val: ImageSet, share: float, unit: Unit
) -> None:
    flops = count_flops(model.network, model.description.input.size)
    budget = Budget(share, unit)
    before = copy.deepcopy(model.network.state_dict())
    skipped = skip_least(model, val, flops, budget)
    torch.testing.assert_close(model.network.state_dict(), before, rtol=0, atol=0)
    weights = dict(
        zip([block.name for block in flops.gated_blocks], budget.weights(flops), strict=True)
    )
    left = 1 - sum(weights[name] for name in skipped)
    assert left <= budget.mean_rate(flops) < left + weights[skipped[-1]]


def test_each_is_the_block_without_which_the_loss_is_least(model: Model, val: ImageSet) -> None:
    flops = count_flops(model.network, model.description.input.size)
    left = [block.name for block in flops.gated_blocks]
    told: list[str] = []
    skipped = skip_least(model, val, flops, Budget(0.5), told.append)
    assert told == skipped
    for number, name in enumerate(skipped):
        gone = skipped[:number]
        assert name == min(left, key=lambda name: loss_without(model, val, [*gone, name]))
        left.remove(name)


@pytest.mark.parametrize(("share", "left"), [(1 / 3, 3), (2 / 3, 6), (7 / 9, 7)])
def test_as_many_are_left_as_the_budget_is_for(
    model: Model, val: ImageSet, share: float, left: int
) -> None:
    """Nine shares of a ninth are a sum that rounding may leave above or below."""
    flops = count_flops(model.network, model.description.input.size)
    assert 9 - len(skip_least(model, val, flops, Budget(share))) == left


def test_a_run_starts_there(model: Model, train: ImageSet, val: ImageSet, tmp_path: Path) -> None:
    """New gates let all through; with steps of no length and no noise they stay where they are."""
    fixed = replace(FAST, epochs=1, lr=0.0, gate_lr=0.0, noise_hold=0.0, noise_end=0.0)
    for start, skips in (("given", 0), ("pattern", 4)):
        told: list[str] = []
        result = finetune(
            copy.deepcopy(model),
            train,
            val,
            replace(fixed, gate_start=start),
            out=tmp_path / start,
            callbacks=Callbacks(on_skip=told.append),
        )
        assert len(told) == skips
        assert result.metrics[0]["train_argmax_rate"] == pytest.approx((9 - skips) / 9)


def test_gates_that_were_trained_do_not_start_anew(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    with torch.no_grad():
        dict(named_gates(model.network))["layer1.0"].fc2.bias.add_(0.1)
    with pytest.raises(UserError, match="gates were trained, or given thresholds"):
        finetune(model, train, val, replace(FAST, gate_start="pattern"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    finetune(model, train, val, replace(FAST, epochs=1), out=tmp_path / "run")
    options = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["options"]
    assert options["gate_start"] == "given"


def test_a_budget_out_of_reach_is_refused(model: Model, val: ImageSet) -> None:
    flops = count_flops(model.network, model.description.input.size)
    with pytest.raises(UserError, match="lowest that can be reached"):
        skip_least(model, val, flops, Budget(0.01, "flops"))
