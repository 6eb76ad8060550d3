import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from aigtool.gates import Gate, logistic_noise, straight_through

MARGINS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50)


@given(MARGINS, st.floats(0.1, 5.0))
def test_forward_is_exactly_zero_or_one(margins: list[float], temperature: float) -> None:
    margin = torch.tensor(margins, requires_grad=True)
    z = straight_through(margin, temperature)
    assert set(z.tolist()) <= {0.0, 1.0}
    assert torch.equal(z > 0, margin > 0)


@given(MARGINS, st.floats(0.1, 5.0))
def test_gradient_is_the_two_way_softmax(margins: list[float], temperature: float) -> None:
    """At the same Gumbel noise, against autograd in float64 (paper, section 3.2)."""
    logits = torch.zeros(len(margins), 2, dtype=torch.float64)
    logits[:, 1] = torch.tensor(margins, dtype=torch.float64)
    gumbel = -torch.empty_like(logits).exponential_().log()

    ours = logits.clone().requires_grad_()
    noise = gumbel[:, 1] - gumbel[:, 0]
    straight_through(ours[:, 1] - ours[:, 0] + noise, temperature).sum().backward()

    theirs = logits.clone().requires_grad_()
    ((theirs + gumbel) / temperature).softmax(1)[:, 1].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_decision_is_torchs_hard_gumbel_softmax() -> None:
    """The same draw as torch.nn.functional.gumbel_softmax(hard=True), value and gradient."""
    logits = torch.randn(1000, 2, dtype=torch.float64)
    theirs = logits.clone().requires_grad_()
    torch.manual_seed(1)
    expected = F.gumbel_softmax(theirs, hard=True)[:, 1]
    expected.sum().backward()
    torch.manual_seed(1)
    gumbel = -torch.empty_like(logits).exponential_().log()
    ours = logits.clone().requires_grad_()
    z = straight_through(ours[:, 1] - ours[:, 0] + gumbel[:, 1] - gumbel[:, 0])
    z.sum().backward()
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("logit", [-2.0, -0.5, 0.0, 1.0, 1.9])
def test_executed_fraction_is_the_softmax_probability(logit: float) -> None:
    draws = 200_000
    z = straight_through(logit + logistic_noise(torch.zeros(draws)))
    probability = torch.tensor(logit).sigmoid().item()
    error = math.sqrt(probability * (1 - probability) / draws)
    assert abs(z.mean().item() - probability) < 4 * error


def test_a_fresh_gate_executes_about_87_percent_when_drawn() -> None:
    gate = Gate(64).train()
    z = gate(torch.randn(20_000, 64, 1, 1)).scale
    assert abs(z.mean().item() - torch.tensor(1.9).sigmoid().item()) < 0.01


def test_a_single_image_trains_and_leaves_the_running_statistics() -> None:
    gate = Gate(8).train()
    gate(torch.randn(4, 8, 3, 3))
    before = {key: value.clone() for key, value in gate.norm.state_dict().items()}
    decision = gate(torch.randn(1, 8, 3, 3))
    decision.scale.sum().backward()
    assert gate.fc1.weight.grad is not None
    assert gate.fc2.weight.grad.abs().sum() > 0
    for key, value in gate.norm.state_dict().items():
        assert torch.equal(value, before[key])


def test_argmax_is_deterministic_and_obeys_the_threshold() -> None:
    gate = Gate(8).eval()
    torch.nn.init.normal_(gate.fc2.weight)
    x = torch.randn(64, 8, 4, 4)
    with torch.no_grad():
        first = gate(x)
        assert torch.equal(first.scale, gate(x).scale)
        assert torch.equal(first.scale > 0, first.logit > 0)
        gate.threshold.fill_(first.logit.median())
        assert gate(x).scale.sum() == 32 or gate(x).scale.sum() == 31


def test_annealed_noise_ends_at_the_argmax_decision() -> None:
    gate = Gate(8)
    torch.nn.init.normal_(gate.fc2.weight)
    torch.nn.init.zeros_(gate.fc2.bias)
    x = torch.randn(32, 8, 4, 4)
    gate.train()(x)
    gate.noise.zero_()
    gate.norm.eval()
    drawn = gate(x).scale
    assert torch.equal(drawn, gate.eval()(x).scale)
    assert 0 < drawn.sum() < 32


def test_policies() -> None:
    gate = Gate(8).eval()
    x = torch.randn(5, 8, 4, 4)
    gate.expected_rate.fill_(0.25)
    with torch.no_grad():
        expectations = {
            "open": (1.0, "all"),
            "closed": (0.0, "none"),
            "expected": (0.25, "scaled"),
            "argmax": (1.0, "chosen"),
        }
        for gate.policy, (scale, run) in expectations.items():
            decision = gate(x)
            assert decision.scale.tolist() == [scale] * 5
            assert decision.run == run
        gate.policy = "sampled"
        gate.fc2.bias.zero_()
        draws = torch.stack([gate(x).scale for _ in range(400)])
        # 2,000 draws at probability one half: the standard error is 0.011.
        assert abs(draws.mean().item() - 0.5) < 0.05


def test_with_a_gradient_the_decision_is_straight_through() -> None:
    gate = Gate(8).eval()
    x = torch.randn(3, 8, 4, 4, requires_grad=True)
    torch.nn.init.normal_(gate.fc2.weight)
    decision = gate(x)
    assert decision.run == "scaled"
    (of_scale,) = torch.autograd.grad(decision.scale.sum(), x, retain_graph=True)
    (of_probability,) = torch.autograd.grad(decision.logit.sigmoid().sum(), x)
    torch.testing.assert_close(of_scale, of_probability)
    assert of_scale.abs().sum() > 0


def test_autocast_leaves_a_gate_as_it_is() -> None:
    gate, x = Gate(8).eval(), torch.randn(16, 8, 4, 4)
    torch.nn.init.normal_(gate.fc2.weight)
    expected = gate(x).logit
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate(x).logit, expected)
        assert gate(x.bfloat16()).scale.dtype == torch.bfloat16
    assert gate.to("meta")(x.to("meta")).logit.shape == (16,)
