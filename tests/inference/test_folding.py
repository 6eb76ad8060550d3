"""A folded gate decides as the gate does, in every type and however few images there are."""

import copy

import pytest
import torch
from torch import nn

from aigtool.gates import Gate
from aigtool.inference import folding
from aigtool.inference.folding import FEW, FoldedGate


@pytest.fixture(params=["native", "python"])
def is_native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Decide for few images by what is written in C, if it is there, and without it."""
    if request.param == "python":
        monkeypatch.setattr(folding, "native", None)
    elif folding.native is None:
        pytest.skip("native.c was not compiled")
    return folding.native is not None


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last)


@pytest.fixture
def gate() -> Gate:
    torch.manual_seed(0)
    gate = Gate(8).eval()
    nn.init.normal_(gate.fc2.weight)
    nn.init.uniform_(gate.norm.running_var, 0.5, 2.0)
    return gate


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("images", [1, FEW + 1])
def test_the_sum_of_large_features_fits(gate: Gate, dtype: torch.dtype, images: int) -> None:
    """Of 112 x 112 positions of 10, which is above what float16 holds."""
    gate = gate.to(dtype)
    x = torch.full((images, 8, 112, 112), 10.0, dtype=dtype)
    with torch.inference_mode():
        expected, decided = gate(x), FoldedGate(gate)(x)
    assert expected.logit.isfinite().all()
    # A few roundings of numbers up to 10, each of 2^-8 with bfloat16.
    torch.testing.assert_close(decided.logit, expected.logit, atol=0.1, rtol=0.02)
    assert torch.equal(decided.scale, expected.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [1, FEW + 1])
@pytest.mark.usefixtures("is_native")
def test_autocast_leaves_it_as_it_is(gate: Gate, dtype: torch.dtype, images: int) -> None:
    x = channels_last(torch.randn(images, 8, 5, 5)).to(dtype)
    folded = FoldedGate(gate)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(folded(x).logit, gate(x).logit, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("images", [1, FEW + 1])
def test_what_is_not_a_number_is_skipped(gate: Gate, images: int, is_native: bool) -> None:
    x, folded = channels_last(torch.full((images, 8, 2, 2), torch.nan)), FoldedGate(gate)
    assert folded._is_native(x) is is_native
    with torch.inference_mode():
        for decision in (gate(x), folded(x)):
            assert decision.logit.isnan().all()
            assert not decision.scale.any()


def test_what_is_infinite_gives_the_same(gate: Gate, is_native: bool) -> None:
    """In a channel that the units weigh by either sign; what is infinite both ways is no number."""
    x, folded = channels_last(torch.randn(2, 8, 3, 5)), FoldedGate(gate)
    x[0, 3, 1, 1], x[1, 3, 1, 1] = torch.inf, -torch.inf
    assert folded._is_native(x) is is_native
    with torch.inference_mode():
        expected, decided = gate(x), folded(x)
    assert not expected.logit.isfinite().any()
    torch.testing.assert_close(decided.logit, expected.logit, equal_nan=True)
    assert torch.equal(decided.scale, expected.scale)


def test_few_images_are_decided_by_the_weights_that_it_has(gate: Gate, is_native: bool) -> None:
    folded, other = FoldedGate(gate), FoldedGate(Gate(8).eval())
    x = channels_last(torch.randn(FEW, 8, 2, 2))
    assert folded._is_native(x) is other._is_native(x) is is_native
    other.load_state_dict(folded.state_dict())
    rounded = copy.deepcopy(folded).to(torch.bfloat16)
    with torch.inference_mode():
        assert other.few(x) == folded.few(x)
        for one, features in ((other, x), (rounded, x.bfloat16())):
            logits = torch.tensor(one.few(features)[1])
            tolerance = 1e-6 if one is other else 0.02
            torch.testing.assert_close(logits, one.logit(features), atol=tolerance, rtol=tolerance)
    assert rounded.fc2.bias.item() == rounded._last_bias != folded._last_bias


def test_double_precision_is_kept(gate: Gate) -> None:
    gate, x = gate.double(), torch.randn(3, 8, 2, 2, dtype=torch.float64)
    x = x.exp()
    with torch.inference_mode():
        hidden = gate.norm(gate.fc1(x.mean((2, 3)))).relu()
        expected = gate.fc2(hidden).diff(dim=1).squeeze(1)
        folded = FoldedGate(gate)
        assert torch.tensor(folded.few(x)[1], dtype=torch.float64).allclose(expected, atol=1e-12)
