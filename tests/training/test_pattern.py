"""The blocks that a network can best do without, and gates that start by skipping them."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from aigtool.budget import Budget, Unit
from aigtool.conversion import named_gates, set_policy
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model
from aigtool.training.loop import finetune
from aigtool.training.pattern import skip_least, take_away
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


def test_the_first_is_the_block_without_which_the_loss_is_least(
    model: Model, val: ImageSet
) -> None:
    flops = count_flops(model.network, model.description.input.size)
    names = [block.name for block in flops.gated_blocks]
    skipped = skip_least(model, val, flops, Budget(0.8))
    assert skipped[0] == min(names, key=lambda name: loss_without(model, val, [name]))


@pytest.mark.parametrize(("blocks", "share", "left"), [(5, 0.6, 3), (50, 0.6, 30), (36, 0.5, 18)])
def test_as_many_are_left_as_the_budget_is_for(blocks: int, share: float, left: int) -> None:
    weights = {f"{number}": 1 / blocks for number in range(blocks)}
    assert blocks - len(take_away(len, weights, share)) == left


@given(
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
    st.lists(st.integers(0, 3), min_size=36, max_size=36),
    st.integers(0, 6),
)
def test_it_takes_away_what_plain_greed_does(costs: list[int], pairs: list[int], most: int) -> None:
    """Where each is worth as much or more when others are gone, what it skips was not the least."""
    names = "abcdef"

    def loss(gone: Sequence[str]) -> float:
        where = [names.index(name) for name in gone]
        return sum(costs[i] for i in where) + sum(pairs[6 * i + j] for i in where for j in where)

    gone: list[str] = []
    while len(names) - len(gone) > most:
        left = [name for name in names if name not in gone]
        gone.append(min(left, key=lambda name: (loss([*gone, name]), name)))
    found = take_away(loss, dict.fromkeys(names, 1.0), most)
    assert [loss(found[:n]) for n in range(len(found) + 1)] == pytest.approx(
        [loss(gone[:n]) for n in range(len(gone) + 1)]
    )


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
            on_start=told.extend,
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
