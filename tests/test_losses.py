import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, kl_divergence

from aigtool.errors import UserError
from aigtool.gates import Decision, straight_through
from aigtool.losses import (
    ClassProbabilities,
    RunningRates,
    decision_entropy,
    execution_rates,
    information_loss,
    network_rate_loss,
    per_layer_rate_loss,
    rate_band_loss,
)

RATES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def test_worked_example_by_hand() -> None:
    """Two gates, four images; every number below was worked out on paper."""
    margin = torch.tensor([[1.0, -1.0, 2.0, -3.0], [0.5, 0.5, 0.5, -0.5]], requires_grad=True)
    decisions = [Decision(straight_through(row), row, "scaled") for row in margin]
    rates = execution_rates(decisions)
    assert rates.tolist() == [0.5, 0.75]

    per_layer = per_layer_rate_loss(rates, torch.tensor([0.6, 0.6]))
    # ((0.5 - 0.6)^2 + (0.75 - 0.6)^2) / 2 = (0.01 + 0.0225) / 2
    torch.testing.assert_close(per_layer, torch.tensor(0.01625))
    (gradient,) = torch.autograd.grad(per_layer, margin, retain_graph=True)
    # d/dmargin = 2 (rate - target) / gates * sigmoid'(margin) / images;
    # sigmoid'(1) = 0.1966119, sigmoid'(0.5) = 0.2350037
    assert abs(gradient[0, 0] - 2 * -0.1 / 2 * 0.1966119 / 4) < 1e-7
    assert abs(gradient[1, 3] - 2 * 0.15 / 2 * 0.2350037 / 4) < 1e-7

    network = network_rate_loss(rates, 0.6)
    # (0.625 - 0.6)^2
    torch.testing.assert_close(network, torch.tensor(0.000625))
    (gradient,) = torch.autograd.grad(network, margin)
    # d/dmargin = 2 (mean - target) / gates * sigmoid'(margin) / images
    assert abs(gradient[0, 0] - 2 * 0.025 / 2 * 0.1966119 / 4) < 1e-8


@given(RATES, st.floats(0, 1))
def test_losses_are_zero_only_on_target_and_ordered(rates: list[float], target: float) -> None:
    given_rates = torch.tensor(rates, dtype=torch.float64)
    per_layer = per_layer_rate_loss(given_rates, torch.tensor(target, dtype=torch.float64))
    network = network_rate_loss(given_rates, target)
    # The mean of squares is at least the square of the mean.
    assert per_layer >= network - 1e-12
    assert network >= 0
    on_target = torch.full_like(given_rates, target)
    assert per_layer_rate_loss(on_target, torch.tensor(target, dtype=torch.float64)) == 0


@given(RATES, st.floats(0, 1))
def test_gradients_match_the_formulas(rates: list[float], target: float) -> None:
    given_rates = torch.tensor(rates, dtype=torch.float64, requires_grad=True)
    (of_layers,) = torch.autograd.grad(
        per_layer_rate_loss(given_rates, torch.tensor(target)), given_rates
    )
    torch.testing.assert_close(of_layers, 2 * (given_rates.detach() - target) / len(rates))
    (of_network,) = torch.autograd.grad(network_rate_loss(given_rates, target), given_rates)
    expected = 2 * (given_rates.detach().mean() - target) / len(rates)
    torch.testing.assert_close(of_network, expected.expand(len(rates)))


def test_rates_of_no_decisions_are_told() -> None:
    with pytest.raises(UserError, match="run the network, converted, within recorded_decisions"):
        execution_rates([])


@given(RATES, st.floats(0, 0.5), st.floats(0.5, 1))
def test_a_band_is_free_inside_and_a_square_outside(
    rates: list[float], low: float, high: float
) -> None:
    given_rates = torch.tensor(rates, dtype=torch.float64)
    nearest = given_rates.clamp(low, high)
    expected = per_layer_rate_loss(given_rates, nearest)
    torch.testing.assert_close(rate_band_loss(given_rates, low, high), expected)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=20))
def test_running_rates_weigh_images_by_age(batches: list[tuple[int, float]]) -> None:
    """Against the sum over images, each weighted by exp(-age / window)."""
    running = RunningRates(gates=1, window=30).double()
    for images, rate in batches:
        value = running(torch.tensor([rate], dtype=torch.float64), images)
    expected, weights, age = 0.0, 0.0, 0
    for images, rate in reversed(batches):
        weight = torch.arange(age, age + images).double().div(-30).exp().sum().item()
        expected, weights, age = expected + weight * rate, weights + weight, age + images
    assert value.item() == pytest.approx(expected / weights, abs=1e-9)


def test_running_rates_have_the_minibatchs_gradient() -> None:
    running = RunningRates(gates=2, window=100)
    running(torch.tensor([0.0, 1.0]), 400)
    rates = torch.tensor([0.5, 0.5], requires_grad=True)
    value = running(rates, 4)
    (gradient,) = torch.autograd.grad(network_rate_loss(value, 0.2), rates)
    # d/drate = 2 (running mean - target) / gates, whatever the minibatch's size.
    expected = (value.detach().mean() - 0.2).expand(2)
    torch.testing.assert_close(gradient, expected)


def test_the_running_loss_does_not_depend_on_the_size_of_minibatches() -> None:
    """The same 4,096 draws of rate 0.5: its own square error, not the variance of a minibatch."""
    draws = torch.bernoulli(torch.full((4096, 3), 0.5), generator=torch.Generator().manual_seed(0))
    plain, steady = {}, {}
    for size in (4, 128):
        running = RunningRates(gates=3)
        rates = [(batch.mean(0), running(batch.mean(0), size)) for batch in draws.split(size)]
        plain[size] = torch.stack([per_layer_rate_loss(r, torch.tensor(0.5)) for r, _ in rates])
        steady[size] = torch.stack([per_layer_rate_loss(r, torch.tensor(0.5)) for _, r in rates])
    # The variance of a mean of n draws is 0.25 / n.
    assert plain[4].mean().item() == pytest.approx(0.25 / 4, rel=0.1)
    assert steady[4][-256:].mean() < 0.25 / 512
    assert (steady[128][-8:].mean() - steady[4][-256:].mean()).abs() < 2e-4


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_information_is_the_entropy_that_the_image_takes_away(rows: list[list[float]]) -> None:
    """Against torch.distributions: the divergence of each image's decision from the mean one."""
    probabilities = torch.tensor(rows, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    means = probabilities.mean(1)
    apart = kl_divergence(
        Bernoulli(probabilities), Bernoulli(means[:, None].expand_as(probabilities))
    ).mean()
    loss = information_loss(means, decision_entropy(probabilities))
    torch.testing.assert_close(loss, math.log(2) - apart)
    assert -1e-9 <= loss <= math.log(2) + 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_uncertainty_is_the_entropy_of_decisions(row: list[float]) -> None:
    probabilities = torch.tensor([row], dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    expected = Bernoulli(probabilities).entropy().mean(1)
    torch.testing.assert_close(decision_entropy(probabilities), expected)


def test_class_probabilities_are_means_over_the_latest_images_of_each_class() -> None:
    known = ClassProbabilities(gates=2, classes=3, window=300)
    assert known.window == 100
    labels = torch.tensor([0, 0, 2])
    first = torch.tensor([[0.2, 0.4, 0.9], [1.0, 0.0, 0.5]], requires_grad=True)
    means = known(first, labels)
    torch.testing.assert_close(means, torch.tensor([[0.3, 0.3, 0.9], [0.5, 0.5, 0.5]]))
    means.sum().backward()
    assert torch.equal(first.grad, torch.ones(2, 3))

    # Of class 0 two images fade to e^-0.01 beside one more, of class 2 none does.
    means = known(torch.tensor([[0.0], [1.0]]), torch.tensor([0]))
    old, new = math.exp(-0.01) * (1 - math.exp(-0.02)), 1 - math.exp(-0.01)
    expected = torch.tensor([[0.3 * old], [0.5 * old + new]]) / (old + new)
    torch.testing.assert_close(means, expected)
    last = known(torch.tensor([[0.9], [0.5]]), torch.tensor([2]))
    torch.testing.assert_close(last, torch.tensor([[0.9], [0.5]]))


def test_with_many_classes_their_means_go_further_back() -> None:
    """Lest a class's mean be that of its last image, which tells all of the image."""
    assert ClassProbabilities(gates=1, classes=1000, window=1024).window == 32


def information_of(probabilities: torch.Tensor) -> torch.Tensor:
    return information_loss(probabilities.mean(1), decision_entropy(probabilities))


def test_information_wants_gates_certain_and_images_told_apart() -> None:
    def loss_of(*row: float) -> float:
        probabilities = torch.tensor([row])
        return information_of(probabilities).item()

    assert loss_of(0.0, 1.0) == pytest.approx(0.0, abs=1e-5)
    assert loss_of(0.1, 0.9) == pytest.approx(0.3251, abs=1e-4)  # H(0.1), in nats
    for useless in ((0.5, 0.5), (1.0, 1.0), (0.0, 0.0)):
        assert loss_of(*useless) == pytest.approx(math.log(2))


def test_information_of_saturated_gates_has_a_gradient() -> None:
    logits = torch.tensor([[-200.0, 200.0, 1.0], [200.0, 200.0, 200.0]], requires_grad=True)
    probabilities = logits.sigmoid()
    (gradient,) = torch.autograd.grad(information_of(probabilities), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 2] != 0


def test_a_gate_that_tells_enough_is_free() -> None:
    """Certain gates, open for 1, 2 and 5 of 10 images: H(0.1) = 0.325, H(0.2) = 0.500, ln 2."""
    rates = torch.tensor([0.1, 0.2, 0.5], requires_grad=True)
    loss = information_loss(rates, torch.zeros(3), least=0.4)
    assert loss.item() == pytest.approx((0.4 - 0.3251) / 3, abs=1e-4)
    loss.backward()
    assert rates.grad is not None
    # d/dq -H(q) = ln(q / (1 - q)): the first is drawn to a half, the others are left alone.
    torch.testing.assert_close(rates.grad, torch.tensor([math.log(0.1 / 0.9) / 3, 0.0, 0.0]))


@pytest.mark.parametrize(("share", "missing"), [(1.0, 0.2), (0.75, 0.1), (0.5, 0.0), (0.25, 0.0)])
def test_information_is_asked_of_a_share_of_the_gates(share: float, missing: float) -> None:
    """Two of four certain gates answer all images alike and tell nothing, whichever they are."""
    for order in itertools.permutations([0.0, 1.0, 0.5, 0.5]):
        loss = information_loss(torch.tensor(order), torch.zeros(4), least=0.4, share=share)
        assert loss.item() == pytest.approx(missing, abs=1e-4)
