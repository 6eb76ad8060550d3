import math
import re
from pathlib import Path
from typing import Any

import foolbox
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert, forced_decisions, named_gates, recorded_decisions
from aigtool.data.images import open_images
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.models.weights import load_weights
from aigtool.models.zoo import create_network
from aigtool.robustness.attacks import fgsm, frozen_gates, loss_gradient, move, noise, pgd
from aigtool.robustness.balls import L2, Ball, Linf
from tests.marks import but_slow

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


BALLS: dict[str, Ball] = {"linf": Linf(), "l2": L2()}
LENGTHS = {"linf": 4 / 255, "l2": 0.5}


@pytest.fixture
def many() -> tuple[torch.Tensor, torch.Tensor]:
    """64 images: a loss that is a mean scales gradients by a power of two, and so exactly."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=generator) / 255
    return pixels, torch.randint(0, 3, (64,), generator=generator)


@pytest.fixture
def gated(network: PixelNetwork) -> PixelNetwork:
    """A network whose gates differ from image to image."""
    convert(network.network)
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight, std=2.0)
    return network


@pytest.mark.parametrize("epsilon", but_slow([8 / 255, 0.3], [0.3]))
def test_pgd_equals_both_libraries_element_for_element(
    epsilon: float, gated: PixelNetwork, many: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ours = pgd(gated, *many, epsilon=epsilon, steps=5, step_size=epsilon / 4)
    theirs = torchattacks.PGD(gated, epsilon, epsilon / 4, steps=5, random_start=False)(*many)
    assert torch.equal(ours, theirs)
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=epsilon / 4, steps=5, random_start=False
    )
    model = foolbox.PyTorchModel(gated, bounds=(0, 1), device="cpu")
    _, theirs, _ = attack(model, *many, epsilons=epsilon)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_targeted", [False, True])
def test_pgd_in_l2_equals_foolbox(
    is_targeted: bool, gated: PixelNetwork, many: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """But for rounding: foolbox squares and sums in another order. In float32 that turns gates."""
    gated.double()
    pixels, labels = many[0][:8].double(), many[1][:8]
    ours = pgd(
        gated,
        pixels,
        labels,
        epsilon=0.5,
        ball=L2(),
        steps=3,
        step_size=0.2,
        is_targeted=is_targeted,
    )
    kind = foolbox.criteria.TargetedMisclassification if is_targeted else foolbox.Misclassification
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(
        abs_stepsize=0.2, steps=3, random_start=False
    )
    model = foolbox.PyTorchModel(gated, bounds=(0, 1), device="cpu")
    _, theirs, _ = attack(model, pixels, kind(labels), epsilons=0.5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_one_step_of_the_whole_length_is_fgsm(
    gated: PixelNetwork, many: tuple[torch.Tensor, torch.Tensor]
) -> None:
    one = pgd(gated, *many, epsilon=8 / 255, steps=1, step_size=8 / 255)
    assert torch.equal(one, fgsm(gated, *many, epsilon=8 / 255))
    there = fgsm(gated, *many, epsilon=8 / 255, is_targeted=True)
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(gated(x), many[1]) for x in (there, many[0], one)]
    assert losses == sorted(losses)


@pytest.mark.parametrize("is_targeted", but_slow([False, True], [True]))
def test_of_restarts_the_best_is_kept(
    is_targeted: bool, gated: PixelNetwork, many: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, labels = many
    options = {"epsilon": 2 / 255, "steps": 2, "is_targeted": is_targeted}
    once = pgd(gated, pixels, labels, restarts=1, **options)
    often = pgd(gated, pixels, labels, restarts=3, **options)
    assert not torch.equal(once, pgd(gated, pixels, labels, **options))
    assert torch.equal(often, pgd(gated, pixels, labels, restarts=3, **options))
    with torch.no_grad():
        right = [(gated(x).argmax(1) == labels) != is_targeted for x in (often, once)]
    assert not (right[0] & ~right[1]).any()
    assert not torch.equal(often, once)


@given(st.sampled_from(list(BALLS)), st.floats(0, 1), st.integers(0, 2**31))
def test_no_attack_leaves_its_ball_or_the_pixels(norm: str, epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, 1, 4, 4, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    labels = torch.tensor([0, 1, 2])
    ball = BALLS[norm]
    for attacked in (
        fgsm(network, pixels, labels, epsilon=epsilon, ball=ball),
        pgd(network, pixels, labels, epsilon=epsilon, ball=ball, steps=3),
        pgd(network, pixels, labels, epsilon=epsilon, ball=ball, steps=2, restarts=1, seed=seed),
        noise(pixels, epsilon=epsilon, ball=ball, seed=seed),
    ):
        assert 0 <= attacked.min() <= attacked.max() <= 1
        way = (attacked.double() - pixels.double()).flatten(1)
        length = way.abs().max() if norm == "linf" else way.norm(dim=1).max()
        # A unit in the last place of a pixel is 2^-24; of 16 squares, the root of their sum's 16.
        assert length <= epsilon + 2**-24 * (1 if norm == "linf" else 4)


@pytest.mark.slow
@pytest.mark.parametrize("is_gated", [False, True])
def test_on_a_real_network_both_attacks_equal_both_libraries(is_gated: bool, shared: Path) -> None:
    network = create_network("cifar_resnet56")
    load_weights(network, shared / "weights" / "resnet56-4bfd9763.th")
    if is_gated:
        convert(network)
        for _, gate in named_gates(network):
            nn.init.normal_(gate.fc2.weight, std=1.0)
    real = PixelNetwork(network, InputSpec.of(network)).eval()
    images = open_images(str(shared / "data" / "cifar10"), "val", to_tensor).limited(64)
    [batch] = load_batches(images, batch_size=64)
    model = foolbox.PyTorchModel(real, bounds=(0, 1), device="cpu")
    epsilon = 8 / 255
    ours = fgsm(real, *batch, epsilon=epsilon)
    _, theirs, _ = foolbox.attacks.FGSM(random_start=False)(model, *batch, epsilons=epsilon)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, torchattacks.FGSM(real, eps=epsilon)(*batch))
    options: dict[str, Any] = {"steps": 20, "random_start": False}
    ours = pgd(real, *batch, epsilon=epsilon, steps=20, step_size=epsilon / 8)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 8, **options)
    _, theirs, _ = attack(model, *batch, epsilons=epsilon)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, torchattacks.PGD(real, epsilon, epsilon / 8, **options)(*batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_are_in_float32_whatever_the_network(
    dtype: torch.dtype, gated: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    gated.network.to(dtype)
    for attacked in (
        fgsm(gated, *images, epsilon=3 / 255),
        pgd(gated, *images, epsilon=3 / 255, steps=2),
    ):
        assert attacked.dtype == torch.float32
        assert not torch.equal(attacked, images[0])
        assert (attacked - images[0]).abs().max() <= 3 / 255 + 2**-24
        assert 0 <= attacked.min() <= attacked.max() <= 1


def test_the_gradient_is_the_straight_through_rule_written_out(gated: PixelNetwork) -> None:
    """Each block by hand in float64: x + z r, z's gradient being the sigmoid's."""
    gated.double()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(6, 3, 32, 32, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 3, (6,), generator=generator)
    with torch.no_grad(), recorded_decisions(gated) as decisions:
        gated(pixels)
        for name, gate in named_gates(gated):
            gate.threshold.fill_(decisions[name].logit.median())
            gated(pixels)

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        net = gated.network
        x = torch.relu(net.bn1(net.conv1((x - gated.mean) / gated.std)))
        for stage in (net.layer1, net.layer2, net.layer3):
            for block in stage:
                gate = block.gate
                hidden = torch.relu(gate.norm(gate.fc1(x.mean(dim=(2, 3)))))
                skip, execute = gate.fc2(hidden).float().unbind(1)
                margin = execute - skip - gate.threshold
                soft = torch.sigmoid(margin)
                z = (margin > 0).to(soft) + soft - soft.detach()
                inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
                x = torch.relu(block.shortcut(x) + z.to(x).view(-1, 1, 1, 1) * inner)
        return net.linear(x.mean(dim=(2, 3)))

    leaf = pixels.clone().requires_grad_()
    logits = by_hand(leaf)
    torch.testing.assert_close(logits, gated(pixels))
    nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    found = loss_gradient(gated, pixels, labels)
    # Gates take their logits to float32, and the two sum in other orders before that.
    assert leaf.grad is not None
    assert (found - leaf.grad).abs().max() < 1e-6 * found.abs().max()
    with frozen_gates(gated, pixels):
        held = loss_gradient(gated, pixels, labels)
    assert (held - found).abs().max() > 1e-3 * found.abs().max()


@given(st.floats(0.05, 4), st.integers(0, 2**31))
def test_in_l2_eight_bits_use_the_ball(epsilon: float, seed: int) -> None:
    """On many pixels each moves by less than a step; the largest are rounded up, to epsilon."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(60, 190, (2, 3, 64, 64), generator=generator) / 255
    moved = pixels + epsilon * L2().steepest(torch.randn(pixels.shape, generator=generator))
    rounded = L2().rounded(pixels, moved, epsilon)
    levels = 255 * rounded
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    lengths = L2().lengths(rounded - pixels)
    assert (lengths <= epsilon + 1e-5).all()
    # What is left over is less than one more step of the pixel that moved most costs.
    most = (levels - 255 * pixels).abs().amax((1, 2, 3))
    assert (255 * (lengths + 1e-5) >= ((255 * epsilon) ** 2 - 2 * most - 1).clamp(0).sqrt()).all()


def test_frozen_gates_are_constants(gated: PixelNetwork) -> None:
    gated.double()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(8, 3, 32, 32, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 3, (8,), generator=generator)
    moved = pixels / 8
    with torch.no_grad(), recorded_decisions(gated) as decisions:
        gated(pixels)
        for name, gate in named_gates(gated):
            gate.threshold.fill_(decisions[name].logit.median())
        gated(pixels)
        made = {name: decision.scale.clone() for name, decision in decisions.items()}
        gated(moved)
        assert any(not torch.equal(decisions[name].scale, made[name]) for name in made)
    with frozen_gates(gated, pixels):
        frozen = loss_gradient(gated, moved, labels)
    constants = {name: scale.requires_grad_() for name, scale in made.items()}
    with forced_decisions(gated, constants):
        torch.testing.assert_close(loss_gradient(gated, moved, labels), frozen)
    assert not torch.allclose(loss_gradient(gated, pixels, labels), frozen)


def test_weights_are_as_they_were(
    gated: PixelNetwork, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    first, *others = gated.parameters()
    first.requires_grad_(False)
    pgd(gated, *images, epsilon=0.1, steps=1)
    with pytest.raises(UserError, match="labels from 3 to 5, the network has 3 outputs"):
        loss_gradient(gated, images[0], images[1] + 3)
    assert not first.requires_grad
    assert all(weight.requires_grad for weight in others)
    assert all(weight.grad is None for weight in others)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epsilon": 8.0}, "epsilon 8, was 8/255 meant"),
        ({"epsilon": 300.0}, "epsilon 300: expected 0 to 1"),
        ({"epsilon": -1.0, "ball": L2()}, "epsilon -1: expected 0 or more"),
        ({"epsilon": 0.1, "steps": 0}, "steps 0: expected at least 1"),
        ({"epsilon": 0.1, "restarts": -1}, "restarts -1"),
        ({"epsilon": 0.1, "step_size": 0.0}, "step size 0: expected a length above 0"),
        ({"epsilon": 0.1, "step_size": math.nan}, "step size nan: expected a length above 0"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    labels = torch.zeros(1, dtype=torch.long)
    with pytest.raises(UserError, match=re.escape(told)):
        pgd(nn.Flatten(), torch.zeros(1, 1, 1, 2), labels, **options)
