import math

import foolbox
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aigtool.conversion import convert, named_gates
from aigtool.errors import UserError
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.attacks import fgsm, loss_gradient, move

EPSILONS = (0.5 / 255, 1 / 255, 8 / 255, 16 / 255, 0.3)


@pytest.fixture
def network(small_network: nn.Module) -> PixelNetwork:
    return PixelNetwork(small_network, InputSpec.of(small_network)).eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of 8 bits, as images have, black and white among them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), generator=generator) / 255
    return pixels, torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_fgsm_equals_torchattacks_element_for_element(
    epsilon: float, network: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    theirs = torchattacks.FGSM(network, eps=epsilon)(*images)
    assert torch.equal(fgsm(network, *images, epsilon=epsilon), theirs)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_fgsm_equals_foolbox_element_for_element(
    epsilon: float, network: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, theirs, _ = attack(model, *images, epsilons=epsilon)
    assert torch.equal(fgsm(network, *images, epsilon=epsilon), theirs)


def test_fgsm_raises_the_loss_and_leaves_gradients_alone(
    network: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, labels = images
    before = pixels.clone()
    attacked = fgsm(network, pixels, labels, epsilon=2 / 255)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network(pixels), labels)
        assert nn.functional.cross_entropy(network(attacked), labels) > loss
    assert torch.equal(pixels, before)
    assert not attacked.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_attack_sees_the_gates(
    network: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """With gates that all execute, the gradient still has the straight-through term."""
    dense = loss_gradient(network, *images)
    convert(network.network)
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight)
        gate.fc2.bias.data[1] = 20.0
    gated = loss_gradient(network, *images)
    assert not torch.allclose(gated, dense)
    for _, gate in named_gates(network):
        gate.policy = "open"
    torch.testing.assert_close(loss_gradient(network, *images), dense)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_pixels_move_at_most_epsilon_and_stay_pixels(epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(2, 1, 4, 4, generator=generator)
    direction = torch.randn(2, 1, 4, 4, generator=generator).sign()
    moved = move(pixels, direction, epsilon=epsilon)
    assert 0 <= moved.min() <= moved.max() <= 1
    # One rounding of a float32 below 2 is at most 2^-24.
    assert (moved - pixels).abs().max() <= epsilon + 2**-23


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, math.nan])
def test_a_wrong_epsilon_is_told(epsilon: float) -> None:
    with pytest.raises(UserError, match="epsilon"):
        fgsm(nn.Identity(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), epsilon=epsilon)
