"""What a step minimises, against torch.distributions and sums by hand."""

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.gates import Decision, Gate
from aigtool.losses import decision_entropy, information_loss
from aigtool.training.config import FinetuneConfig
from aigtool.training.objective import Objective

FLOPS = NetworkFlops(
    gflops_dense=10.0,
    params=1,
    blocks=(
        BlockFlops("a", 2.0, gated=True, skippable=1.5, gate=0.01),
        BlockFlops("b", 3.0, gated=True, skippable=3.0, gate=0.03),
    ),
)
LABELS = torch.tensor([0, 1, 2, 0, 1])


def decisions() -> dict[str, Decision]:
    """Rates 0.4 and 0.8; without noise 0.6 and 1."""
    logit = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    return {
        "a": Decision(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), logit, "scaled"),
        "b": Decision(torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]), logit + 2, "scaled"),
    }


def at(progress: float, objective: Objective) -> Objective:
    objective.advance(progress)
    return objective


def terms(config: FinetuneConfig, gates: dict[str, Gate]) -> dict[str, float]:
    objective = Objective(config, gates, FLOPS, None, images=1000, classes=3)
    logits = torch.zeros(5, 3)
    values = at(1.0, objective)(torch.zeros(5, 1, 1, 1), LABELS, logits, decisions())
    return {name: value.item() for name, value in values.items()}


@pytest.fixture
def gates() -> dict[str, Gate]:
    return {"a": Gate(4), "b": Gate(4)}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_task_loss_is_cross_entropy_and_divergence_from_the_teacher(
    weight: float, temperature: float
) -> None:
    """(1 - w) CE + w T^2 KL(teacher || network), worked out with torch.distributions."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    config = FinetuneConfig(distill=weight, distill_temperature=temperature)
    objective = Objective(config, {}, FLOPS, teacher, images=5, classes=3)
    pixels = torch.rand(5, 3, 2, 2)
    logits = network(pixels)
    expected = (1 - weight) * nn.functional.cross_entropy(logits, LABELS)
    soft = [Categorical(logits=answer / temperature) for answer in (teacher(pixels), logits)]
    expected = expected + weight * temperature**2 * kl_divergence(*soft).mean()
    torch.testing.assert_close(at(1.0, objective)(pixels, LABELS, logits, {})["loss"], expected)
    assert "_teacher" not in objective.state_dict()


def test_rates_and_losses_by_hand(gates: dict[str, Gate]) -> None:
    task = torch.tensor(3.0).log().item()
    plain = FinetuneConfig(target_rate=0.5, rate_weight=10.0, information=0.0, certainty=0.0)
    values = terms(plain, gates)
    assert values["execution_rate"] == pytest.approx(0.6)
    assert values["argmax_rate"] == pytest.approx(0.8)
    assert values["rate_loss"] == pytest.approx((0.6 - 0.5) ** 2)
    assert values["loss"] == pytest.approx(task + 10 * 0.01, abs=1e-6)
    assert values["correct"] == 2

    # Weights 1/3 and 2/3 of what can be saved; 0.8 of 10 GFLOPs leaves (8 - 5.54) / 4.5 of it.
    values = terms(FinetuneConfig(target_flops=0.8), gates)
    weighted = 0.4 / 3 + 0.8 * 2 / 3
    assert values["rate_loss"] == pytest.approx((weighted - (8 - 5.54) / 4.5) ** 2, abs=1e-6)

    gates["a"].target = 0.9
    values = terms(FinetuneConfig(target_rate=0.5, target="per-layer"), gates)
    assert values["rate_loss"] == pytest.approx(((0.4 - 0.9) ** 2 + (0.8 - 0.5) ** 2) / 2)

    band = replace(plain, rate_weight=0.0, band=2.0, band_low=0.5, band_high=0.7)
    assert terms(band, gates)["loss"] == pytest.approx(task + 2 * (0.1**2 + 0.1**2) / 2, abs=1e-6)

    told = replace(
        plain, rate_weight=0.0, information=3.0, least_information=0.6, informed_share=0.9
    )
    made = torch.stack([decision.logit.sigmoid() for decision in decisions().values()])
    of_classes = torch.stack([made[:, label == LABELS].mean(1) for label in LABELS], 1)
    for about, known in {"image": made, "class": of_classes}.items():
        loss = information_loss(made.mean(1), decision_entropy(known), 0.6, 0.9).item()
        asked = replace(told, information_about=about)
        assert terms(asked, gates)["loss"] == pytest.approx(task + 3 * loss, abs=1e-6)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.3, 0.0), (0.5, 1.0), (0.9, 2.0)])
def test_certainty_is_asked_for_as_the_noise_falls(
    gates: dict[str, Gate], progress: float, weight: float
) -> None:
    config = FinetuneConfig(
        rate_weight=0.0, information=0.0, certainty=2.0, noise_hold=0.3, noise_end=0.7
    )
    objective = Objective(config, gates, FLOPS, None, images=1000, classes=3)
    values = at(progress, objective)(
        torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3), decisions()
    )
    made = torch.stack([decision.logit.sigmoid() for decision in decisions().values()])
    expected = torch.tensor(3.0).log() + weight * Bernoulli(made).entropy().mean()
    torch.testing.assert_close(values["loss"], expected)


@pytest.mark.parametrize("gated", [True, False])
def test_backward_is_the_gradient_of_the_loss_times_a_factor(
    gates: dict[str, Gate], gated: bool
) -> None:
    objective = Objective(
        FinetuneConfig(target_rate=0.5), gates if gated else {}, FLOPS, None, 1000, classes=3
    )
    found = []
    for way in ("backward", "loss"):
        logits = torch.linspace(0, 1, 15).view(5, 3).requires_grad_()
        of_gates = [torch.linspace(-1, 1, 5).requires_grad_() for _ in gates]
        made = {
            name: Decision(logit.sigmoid(), logit, "scaled")
            for name, logit in zip(gates, of_gates, strict=True)
        }
        again = at(0.5, copy.deepcopy(objective))
        terms = again(torch.zeros(5, 1, 1, 1), LABELS, logits, made)
        if way == "backward":
            again.backward(terms, torch.tensor(0.25))
        else:
            (0.25 * terms["loss"]).backward()
        found.append([logits.grad, *(logit.grad for logit in of_gates)])
    torch.testing.assert_close(*found)
    assert all((gradient is not None) == gated for gradient in found[0][1:])


def test_rates_are_those_of_the_latest_images(gates: dict[str, Gate]) -> None:
    config = FinetuneConfig(target_rate=0.5)
    objective = Objective(config, gates, FLOPS, None, images=10**6, classes=3)
    assert objective.running.window == 1024
    closed = {name: d._replace(scale=torch.zeros(5)) for name, d in decisions().items()}
    shape = (torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3))
    at(1.0, objective)(*shape, closed)
    value = at(1.0, objective)(*shape, decisions())["rate_loss"].item()
    # Two minibatches of nearly the same weight: half of 0.6.
    assert value == pytest.approx((0.3 - 0.5) ** 2, abs=1e-3)
    again = Objective(config, gates, FLOPS, None, images=10**6, classes=3)
    again.load_state_dict(objective.state_dict())
    for name in ("rate_loss", "loss"):
        assert at(1.0, objective)(*shape, closed)[name] == at(1.0, again)(*shape, closed)[name] != 0


@pytest.mark.parametrize("target", ["network", "per-layer"])
def test_what_rates_missed_is_asked_for_until_they_land(
    gates: dict[str, Gate], target: Literal["network", "per-layer"]
) -> None:
    """A pull of 10 on each rate would leave rates 10 / (2 * 100) too high, but for that."""
    config = FinetuneConfig(
        target_rate=0.5, target=target, rate_window=1, information=0, target_ramp=0.1
    )
    objective = Objective(config, gates, FLOPS, None, images=10**6, classes=3)
    rates = torch.tensor([0.9, 0.7], requires_grad=True)
    for step in range(300):
        scale = {name: rate.expand(5) for name, rate in zip(gates, rates, strict=True)}
        made = {name: Decision(value, torch.zeros(5), "scaled") for name, value in scale.items()}
        loss = at(step / 100, objective)(torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3), made)
        (loss["loss"] - 10 * rates.mean()).backward()
        with torch.no_grad():
            rates -= 0.004 * rates.grad
        rates.grad = None
    assert rates.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert objective.carried.mean().item() == pytest.approx(0.05, abs=2e-3)


@pytest.mark.parametrize(("progress", "target"), [(0.0, 1.0), (0.1, 0.8), (0.2, 0.6), (0.7, 0.6)])
def test_the_target_falls_to_what_is_asked(
    gates: dict[str, Gate], progress: float, target: float
) -> None:
    config = FinetuneConfig(target_rate=0.6, target_ramp=0.2)
    objective = Objective(config, gates, FLOPS, None, images=1000, classes=3)
    made = {name: Decision(torch.full((5,), 0.5), torch.zeros(5), "scaled") for name in gates}
    terms = at(progress, objective)(torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3), made)
    assert terms["rate_loss"].item() == pytest.approx((0.5 - target) ** 2, abs=1e-6)


def test_gates_that_cannot_move_are_not_pushed_ever_harder(gates: dict[str, Gate]) -> None:
    objective = Objective(
        FinetuneConfig(rate_window=1), gates, FLOPS, None, images=10**6, classes=3
    )
    made = {name: Decision(torch.ones(5), torch.zeros(5), "scaled") for name in gates}
    for _ in range(1000):
        at(1.0, objective)(torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3), made)
    assert objective.carried.item() == 0.25


@pytest.mark.parametrize(
    ("options", "rates", "excess"),
    [
        # Argmax rates in training are 0.6 and 1. Over the network, a mean: 0.86 - 0.8.
        ({"target_rate": 0.5}, [0.72, 1.0], [0.06]),
        ({"target_rate": 0.5}, [0.5, 0.98], [-0.06]),
        # In FLOPs the blocks count 1/3 and 2/3 of what can be saved.
        ({"target_flops": 0.8}, [0.72, 1.0], [0.04]),
        ({"target_rate": 0.5, "target": "per-layer"}, [0.65, 0.97], [0.05, -0.03]),
        ({"target_rate": 0.5}, [0.0, 0.0], [-0.1]),
    ],
)
def test_the_target_is_less_by_what_new_images_execute_more(
    gates: dict[str, Gate], options: dict[str, Any], rates: list[float], excess: list[float]
) -> None:
    config = FinetuneConfig(**options, target_ramp=0.0, information=0.0)
    objective = Objective(config, gates, FLOPS, None, images=1000, classes=3)
    given = (torch.zeros(5, 1, 1, 1), LABELS, torch.zeros(5, 3), decisions())
    wanted = objective.targets.clone()
    at(1.0, objective)(*given)
    objective.land(rates)
    torch.testing.assert_close(objective.excess.reshape(-1), torch.tensor(excess))
    again = Objective(config, gates, FLOPS, None, images=1000, classes=3)
    again.load_state_dict(objective.state_dict())
    moved = at(1.0, again)(*given)["rate_loss"]
    made = torch.tensor([0.4, 0.8])
    torch.testing.assert_close(moved, objective.rate_loss(made, wanted - objective.excess))
