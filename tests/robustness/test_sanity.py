"""Checks pass on networks with honest gradients, and doubt those that hide them."""

import pytest
import torch
from torch import Tensor, nn

from aigtool.flops import NetworkFlops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.cases import Judged
from aigtool.robustness.sanity import CHANCE, DOUBT, Check, sanity_checks

Batch = tuple[Tensor, Tensor]


class _Honest(nn.Module):
    """Tells light from dark, and red from blue, by smooth functions."""

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = x.mean(dim=(2, 3)).unbind(1)
        return 30 * torch.stack([red - 0.5, blue - 0.5, 0.5 - green], 1)


class _Hiding(_Honest):
    """Rounds its input, so that no gradient is left, but for one that points the wrong way."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = (32 * x).round() / 32
        wrong = -0.01 * x
        return super().forward((rounded + wrong - wrong.detach()).clamp(0, 1))


def judged_as(network: nn.Module) -> Judged:
    spec = InputSpec((3, 8, 8), (0.0,) * 3, (1.0,) * 3)
    return Judged(PixelNetwork(network, spec).eval(), NetworkFlops(1.0, 0, ()), "open")


@pytest.fixture
def batches() -> list[Batch]:
    pixels = torch.rand(90, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    pixels = (0.3 + 0.4 * pixels).expand(90, 3, 8, 8).clone()
    with torch.no_grad():
        labels = _Honest()(pixels).argmax(1)
    return [(pixels[:50], labels[:50]), (pixels[50:], labels[50:])]


def by_name(checks: list[Check], network: str) -> dict[str, Check]:
    return {check.name: check for check in checks if check.network == network}


def test_honest_networks_pass(batches: list[Batch]) -> None:
    one, other = (judged_as(_Honest()) for _ in range(2))
    done: list[int] = []
    checks = sanity_checks(
        {"one": one, "other": other}, batches, epsilon=0.05, progress=done.append
    )
    assert all(check.passed for check in checks)
    assert len(by_name(checks, "one")) == 4
    assert len(by_name(checks, "other")) == 3  # nothing is transferred from itself
    assert by_name(checks, "one")[CHANCE].correct == 0
    assert by_name(checks, "one")[CHANCE].other == pytest.approx(30)
    assert sum(done) == 90 * 2 * 4
    assert checks[0].as_dict()["verdict"] == "passed"


def test_hidden_gradients_are_found(batches: list[Batch]) -> None:
    networks = {
        "hiding": judged_as(_Hiding()),
        "honest": judged_as(_Honest()),
    }
    checks = sanity_checks(networks, batches, epsilon=0.05)
    hiding = by_name(checks, "hiding")
    doubted = [name for name, check in hiding.items() if not check.passed]
    assert CHANCE in doubted
    assert "FGSM from the other network is no stronger than its own" in doubted
    assert hiding[CHANCE].as_dict()["verdict"] == DOUBT
    assert all(check.passed for check in by_name(checks, "honest").values())


def test_gates_are_told_apart(networks: dict[str, Judged], batch: Batch) -> None:
    checks = sanity_checks(
        networks, [batch], epsilon=0.05, gate_gradients=["straight-through", "frozen"], steps=3
    )
    seen = {(check.network, check.gate_gradient) for check in checks}
    assert seen == {("gated", "straight-through"), ("gated", "frozen"), ("open", None)}


def test_from_a_gated_network_one_attack_is_transferred(
    networks: dict[str, Judged], batch: Batch
) -> None:
    reversed_networks = dict(reversed(networks.items()))
    checks = sanity_checks(
        reversed_networks, [batch], epsilon=0.05, gate_gradients=["worst"], steps=2
    )
    assert {check.images for check in checks} == {24}
    assert len(by_name(checks, "open")) == 4
