"""Calibration against quantiles and on a network whose gates see each other's decisions."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.budget import Budget
from aigtool.calibration import (
    _Pass,
    _Search,
    _step,
    calibrate,
    calibrate_each,
    clearing_move,
    threshold_move,
)
from aigtool.conversion import convert, named_gates, recorded_decisions
from aigtool.data.images import ImageSet, open_images
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.models.zoo import create_network
from aigtool.trace import collect_trace
from tests.marks import but_slow

SPEC = InputSpec(size=(3, 32, 32))
# Logits are float32: half of the least that is not 0 is not 0 in float64.
MARGINS = arrays(np.float64, (7, 3), elements=st.floats(-20, 20, width=32))
WEIGHTS = np.array([0.2, 0.3, 0.5])


@pytest.fixture
def network(gated_network: nn.Module) -> PixelNetwork:
    """A network whose gates tell images apart."""
    pixels = PixelNetwork(gated_network, SPEC).eval()
    for _, gate in named_gates(pixels):
        nn.init.normal_(gate.fc2.weight)
    return pixels


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "train", to_tensor)


@pytest.fixture
def flops(gated_flops: NetworkFlops) -> NetworkFlops:
    return gated_flops


@given(MARGINS, st.floats(0, 1))
def test_a_step_spends_as_much_as_it_may(margins: np.ndarray, rate: float) -> None:
    def spent(shift: float) -> float:
        return float((margins > shift).mean(axis=0) @ WEIGHTS)

    step = _step(margins, WEIGHTS, rate)
    assert spent(step) <= rate + 1e-9
    below = margins[margins <= step]
    if len(below):  # One value more would be too much, or the step is that value's tie.
        more = np.nextafter(below.max(), -np.inf)
        assert spent(more) > rate - 1e-9


@given(MARGINS, st.floats(-1, 1).filter(lambda less: abs(less) > 0.01))
def test_a_threshold_moves_by_as_many_images_as_asked(margins: np.ndarray, less: float) -> None:
    """Of 21 margins; ties go together, and no more than there are."""
    values = margins.ravel()
    before = int((values > 0).sum())
    now = int((values > threshold_move(values, less)).sum())
    wanted = max(1, round(abs(less) * len(values)))
    changed = before - now if less > 0 else now - before
    there = before if less > 0 else len(values) - before
    ties = np.unique(values, return_counts=True)[1].max()
    assert min(wanted, there) <= changed <= min(wanted + ties - 1, there)


def test_the_threshold_rises_that_costs_the_least(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    """Against each of the nine tried by hand: four images of one gate are 0.02 of the rate."""
    gates = [gate for _, gate in named_gates(network)]

    pixels, labels = (
        torch.stack([torch.as_tensor(e) for e in each]) for each in zip(*images, strict=True)
    )

    def judged(shifts: np.ndarray) -> tuple[float, np.ndarray]:
        for gate, shift in zip(gates, shifts, strict=True):
            gate.threshold.fill_(shift)
        with torch.inference_mode(), recorded_decisions(network) as decisions:
            loss = nn.functional.cross_entropy(network(pixels), labels).item()
        logits = torch.stack([made.logit for made in decisions.values()], dim=1).numpy()
        return loss, logits - shifts

    loss, margins = judged(np.zeros(9))
    rate = (margins > 0).mean()
    costs = {}
    for place in range(9):
        shifts = np.zeros(9)
        shifts[place] = threshold_move(margins[:, place], 4 / 24)
        then, after = judged(shifts)
        left = (after > 0).mean()
        if rate - 0.04 < left < rate:
            costs[place] = (then - loss) / (rate - left)
    best = min(costs, key=costs.__getitem__)
    judged(np.zeros(9))
    found = calibrate(network, images, Budget(rate - 0.02), flops)
    assert found.shifts[best] > 0
    assert rate - 0.06 < found.spent <= rate - 0.02


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("unit", ["rate", "flops"])
@pytest.mark.parametrize("share", but_slow([0.3, 0.5, 0.7, 0.9], [0.3, 0.5, 0.9]))
def test_argmax_execution_meets_the_budget(
    unit: str,
    share: float,
    quick: bool,
    network: PixelNetwork,
    images: ImageSet,
    flops: NetworkFlops,
) -> None:
    budget = Budget(share, unit)  # type: ignore[arg-type]
    before = [gate.threshold.item() for _, gate in named_gates(network)]
    found = calibrate(network, images, budget, flops, quick=quick, batch_size=7)
    trace = collect_trace(network, images, flops=flops, batch_size=5)
    summary = trace.summary()
    spent = summary["execution_rate" if unit == "rate" else "flops_fraction"]
    # Batches of other sizes round otherwise: a decision may turn, 1 of 24 x 9.
    assert spent == pytest.approx(found.spent, abs=0.01)
    # 24 images and 9 gates: the finest step is 1 / 216 of the rate.
    assert share - 0.02 <= found.spent <= share
    after = [gate.threshold.item() for _, gate in named_gates(network)]
    assert np.subtract(after, before) == pytest.approx(found.shifts, abs=1e-5)
    # One logit for all, but for what keeps each clear of rounding.
    assert (np.ptp(found.shifts) < 0.02 + 1e-5) == quick


def _decided(
    network: PixelNetwork, images: ImageSet, batch_size: int, flops: NetworkFlops
) -> np.ndarray:
    return collect_trace(network, images, flops=flops, batch_size=batch_size).executed


def test_each_gate_is_kept_to_its_own_rate(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    """To the image, though gates see what those before them decided: 24 images, 9 gates.

    The first gate says the same of seven images, from the tenth on.
    """
    rates = [0.375, 1.0, 0.25, 0.9, 0.0, 0.5, 0.75, 1.0, 0.5]
    before = [gate.threshold.item() for _, gate in named_gates(network)]
    found = calibrate_each(network, images, rates)
    rows = _decided(network, images, 24, flops)
    assert rows.mean(axis=0).tolist() == [int(rate * 24) / 24 for rate in rates]
    assert found.spent == pytest.approx(rows.mean())
    after = [gate.threshold.item() for _, gate in named_gates(network)]
    assert np.subtract(after, before) == pytest.approx(found.shifts, abs=1e-5)


def test_a_gate_that_tells_no_images_apart_stays_within_its_rate(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    _, gate = next(iter(named_gates(network)))
    nn.init.zeros_(gate.fc2.weight)
    calibrate_each(network, images, [0.5] * 9)
    rows = _decided(network, images, 7, flops)
    assert rows.mean(axis=0).tolist() == [0.0] + [0.5] * 8
    calibrate_each(network, images, [1.0] * 9)
    assert _decided(network, images, 7, flops).all()


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=20),
    st.sampled_from([1.0, 0.01, 0.001]),
)
def test_a_threshold_is_moved_clear_of_logits_and_turns_no_decision(
    values: list[float], scale: float
) -> None:
    margins = scale * np.array(values)
    moved = margins - clearing_move(margins)
    below, above = margins[margins <= 0], margins[margins > 0]
    gap = above.min(initial=np.inf) - below.max(initial=-np.inf)
    if gap > 1e-12:  # else both lie within the rounding of this test
        assert ((moved > 0) == (margins > 0)).all()
    assert np.abs(moved).min() >= min(0.01, gap / 2) - 1e-9


def test_it_tells_how_far_it_is(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    told: list[float] = []
    calibrate(network, images, Budget(0.3), flops, progress=told.append)
    assert told[0] == 0
    assert told == sorted(told)
    assert 0.5 < told[-1] <= 1


def test_a_network_that_keeps_to_the_budget_may_spend_more(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    low = calibrate(network, images, Budget(0.3), flops)
    high = calibrate(network, images, Budget(0.8), flops)
    assert low.spent < high.spent <= 0.8
    assert np.mean(high.shifts) < 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("few", [3, 24])
def test_a_quick_search_ends_when_no_decision_is_left_to_turn(
    few: int, share: float, network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    """Halving the way between two shifts would take 20 passes to know them to a millionth."""
    budget = Budget(share)
    chosen = images.limited(few)
    found = calibrate(network, chosen, budget, flops, quick=True)
    assert found.passes <= 15
    assert found.spent <= share
    search = _Search(network, partial(load_batches, chosen, batch_size=24), budget, flops)
    margins = search.run(search.zero).margins
    shift = margins[margins <= 0].max() - 1e-3
    assert search.run(np.full(len(search.start), shift)).spent > share


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_budget_that_can_be_spent_to_the_last_bit_is(
    share: float, network: PixelNetwork, flops: NetworkFlops
) -> None:
    """Of 20 images and 9 gates, whatever their sums round to."""
    search = _Search(network, list, Budget(share), flops)
    for seed in range(40):
        margins = np.random.default_rng(seed).normal(size=(20, 9))

        def run(shifts: np.ndarray, margins: np.ndarray = margins) -> _Pass:
            left = margins - shifts
            return _Pass(left, search.budget.spent((left > 0).mean(axis=0), flops), 0.0)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(search, "run", run)
            shifts, spent = search.together(search.zero)
        assert spent == pytest.approx(share, abs=1e-9)
        assert (margins > shifts).mean() == pytest.approx(share, abs=1e-9)


def test_gates_that_tell_no_images_apart_stay_within(images: ImageSet, flops: NetworkFlops) -> None:
    """Of gates with one logit each, whole blocks go: 4 of 9 fit into a half."""
    torch.manual_seed(0)
    network = PixelNetwork(convert(create_network("cifar_resnet20", num_classes=3)), SPEC).eval()
    for place, (_, gate) in enumerate(named_gates(network)):
        nn.init.zeros_(gate.fc2.weight)
        gate.fc2.bias.data.copy_(torch.tensor([0.0, place + 1.0]))
    found = calibrate(network, images, Budget(0.5), flops, quick=True)
    assert found.spent == pytest.approx(4 / 9)
    assert 5 <= found.shifts[0] < 6
    for _, gate in named_gates(network):
        gate.threshold.zero_()
    assert calibrate(network, images, Budget(0.5), flops).spent == pytest.approx(4 / 9)


@pytest.mark.parametrize(("share", "blocks"), [(0.3, 2), (0.54, 4), (0.7, 6)])
def test_gates_that_say_all_the_same_are_closed_one_by_one(
    share: float, blocks: int, images: ImageSet, flops: NetworkFlops
) -> None:
    """The last block to go may leave more of the budget than was missing."""
    network = PixelNetwork(convert(create_network("cifar_resnet20", num_classes=3)), SPEC).eval()
    for _, gate in named_gates(network):
        nn.init.zeros_(gate.fc2.weight)
    found = calibrate(network, images, Budget(share), flops)
    assert found.spent == pytest.approx(blocks / 9)


def test_a_budget_that_no_gate_alone_leads_to_is_looked_for_with_all(
    network: PixelNetwork, monkeypatch: pytest.MonkeyPatch, flops: NetworkFlops
) -> None:
    """Of each pair of gates, one that would execute keeps the other from it."""
    further = np.arange(4)[:, None] / 10
    own = np.concatenate([1 + further, -1 - further] * 4 + [np.full((4, 1), 10.0)], axis=1)
    other = [1, 0, 3, 2, 5, 4, 7, 6, 8]

    def run(self: _Search, shifts: np.ndarray) -> _Pass:
        wish = own - shifts
        margins = wish - 1.5 * (wish[:, other] > 0) * (np.arange(9) < 8)
        return _Pass(margins, self.budget.spent((margins > 0).mean(axis=0), flops), 0.0)

    monkeypatch.setattr(_Search, "run", run)
    found = calibrate(network, ImageSet.__new__(ImageSet), Budget(0.8), flops)
    assert (found.before, found.spent) == pytest.approx((5 / 9, 7 / 9))


def test_the_least_that_can_be_spent_is_met_by_numbers(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    found = calibrate(network, images, Budget(0.0005), flops, quick=True)
    assert found.spent == 0
    assert np.isfinite(found.shifts).all()


def test_a_budget_out_of_reach_changes_nothing(
    network: PixelNetwork, images: ImageSet, flops: NetworkFlops
) -> None:
    with pytest.raises(UserError, match="lowest that can be reached"):
        calibrate(network, images, Budget(0.001, "flops"), flops)
    assert all(gate.threshold == 0 for _, gate in named_gates(network))
