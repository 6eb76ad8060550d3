"""Attacks of other libraries, by name."""

import sys
from typing import Any

import foolbox
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from aigtool.conversion import convert
from aigtool.errors import UserError
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.models.zoo import create_network
from aigtool.robustness.balls import BALLS
from aigtool.robustness.cases import Judged
from aigtool.robustness.evaluation import attack_networks
from aigtool.robustness.libraries import (
    LIBRARIES,
    check_attack,
    library_attack,
    library_attacks,
)
from tests.proof import enliven

Batch = tuple[Tensor, Tensor]
QUICK = (
    *("foolbox:LinfPGD", "foolbox:L2FastGradientAttack", "foolbox:L2DeepFoolAttack"),
    *("foolbox:LinfDeepFoolAttack", "foolbox:LinfAdditiveUniformNoiseAttack"),
    *("foolbox:GaussianBlurAttack", "torchattacks:PGDL2", "torchattacks:DeepFool"),
    *("torchattacks:MIFGSM", "torchattacks:APGD", "torchattacks:PIFGSM"),
)


@pytest.fixture
def few(batch: Batch) -> Batch:
    return batch[0][::6], batch[1][::6]


def runnable() -> list[str]:
    return [one.name for lib in LIBRARIES for one in library_attacks(lib) if not one.refused]


def test_what_can_be_built_is_listed() -> None:
    names = runnable()
    assert {*QUICK, "torchattacks:AutoAttack", "foolbox:LInfFMNAttack"} <= {*names}
    refused = {one.name: one.refused for lib in LIBRARIES for one in library_attacks(lib)}
    assert refused["foolbox:VirtualAdversarialAttack"] == "needs steps"
    assert refused["torchattacks:OnePixel"] == "moves few pixels by any amount"
    assert refused["torchattacks:LGV"] == "needs trainloader"
    assert "goes by" in refused["foolbox:L1PGD"]
    assert not any(name.rpartition(":")[2] == "Attack" for name in refused)


@pytest.mark.parametrize("name", QUICK)
def test_it_stays_in_the_ball_and_harms(name: str, judged: Judged, few: Batch) -> None:
    attack = library_attack(name)
    pixels, labels = few
    epsilons = [0.05, 0.1] if attack.ball.norm == "linf" else [1.0, 4.0]
    seen = attack.moved(judged.network, pixels, labels, epsilons, seed=1)
    again = attack.moved(judged.network, pixels, labels, epsilons, seed=1)
    for moved, same, epsilon in zip(seen, again, epsilons, strict=True):
        assert torch.equal(moved, same)
        assert attack.ball.lengths(moved - pixels).max() <= epsilon * (1 + 1e-5) + 1e-6
        assert 0 <= moved.min() <= moved.max() <= 1
    assert all(weight.requires_grad for weight in judged.network.parameters())


WANT_A_START = ("foolbox:BoundaryAttack", "foolbox:HopSkipJumpAttack")
"""Look for a wrong answer by blending in noise first, and give up where they find none."""
WITHIN = {one.name for lib in LIBRARIES for one in library_attacks(lib) if not one.is_least}
MINUTES = ("foolbox:L2CarliniWagnerAttack",)
"""Take minutes for two images."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*runnable()} - {*QUICK, *MINUTES}))
def test_every_other_attack_runs(name: str) -> None:
    torch.manual_seed(0)
    network = enliven(create_network("cifar_resnet20", num_classes=5), 32)  # targeted ones want 4
    real = PixelNetwork(convert(network), InputSpec.of(network)).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = real(pixels).argmax(1)
    attack = library_attack(name)
    if name in WANT_A_START:
        with pytest.raises(UserError, match="init_attack failed"):
            attack.moved(real, pixels, labels, [0.1])
        return
    [moved] = attack.moved(real, pixels, labels, [0.1])
    assert moved.shape == pixels.shape
    assert attack.ball.lengths(moved - pixels).max() <= 0.1 * (1 + 1e-5) + 1e-6
    if name in WITHIN and "Repeated" not in name:  # noise that turns nothing is not kept
        assert not torch.equal(moved, pixels)


def test_within_epsilon_is_the_librarys_own(judged: Judged, few: Batch) -> None:
    pixels, labels = few
    [ours] = library_attack("torchattacks:BIM").moved(judged.network, pixels, labels, [0.05])
    assert torch.equal(ours, torchattacks.BIM(judged.network, eps=0.05)(pixels, labels))


def test_the_least_distance_is_compared_with_each_epsilon(judged: Judged, few: Batch) -> None:
    pixels = few[0]
    with torch.no_grad():
        labels = judged.network(pixels).argmax(1)
    model = foolbox.PyTorchModel(judged.network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfDeepFoolAttack()
    moved, _, success = attack(model, pixels, labels, epsilons=None)
    distances = (moved - pixels).abs().flatten(1).amax(1)
    assert success.all()
    epsilons = [distances.min().item() / 2, distances.median().item(), distances.max().item()]
    ours = library_attack("foolbox:LinfDeepFoolAttack").moved(
        judged.network, pixels, labels, epsilons
    )
    for epsilon, attacked in zip(epsilons, ours, strict=True):
        found = distances <= epsilon * (1 + 1e-5) + 1e-6
        wanted = torch.where(found.view(-1, 1, 1, 1), moved, pixels)
        torch.testing.assert_close(attacked, wanted, rtol=0, atol=1e-6)
    assert torch.equal(ours[0], pixels)


def test_targets_are_the_networks_own_classes(few: Batch) -> None:
    """The library thinks of ten classes unless it is told."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).eval()
    with torch.no_grad():
        labels = linear(few[0]).argmax(1)
    attack = library_attack("torchattacks:APGDT", BALLS["l2"])
    [moved] = attack.moved(linear, few[0], labels, [0.5])
    with torch.no_grad():
        assert (linear(moved).argmax(1) != labels).any()
    assert 0 < BALLS["l2"].lengths(moved - few[0]).max() <= 0.5 + 1e-4


def test_held_gates_and_images_that_are_left_out_do_not_go_together(
    judged: Judged, batch: Batch
) -> None:
    """AutoAttack asks about the images that are left: whose gates would be held?"""
    with torch.no_grad():
        labels = judged.network(batch[0]).argmax(1)
    labels[::2] = (labels[::2] + 1) % 3
    with pytest.raises(UserError, match="torchattacks:AutoAttack gave up"):
        attack_networks(
            {"gated": judged},
            [(batch[0], labels)],
            epsilons=[0.01],
            attacks=[library_attack("torchattacks:AutoAttack")],
            gate_gradients=["frozen"],
        )


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("foolbox:LinfPDG", {}, "has none of that name; near are foolbox:LinfPGD"),
        ("torchattacks:Xylophone", {}, "has none of that name; see --attack list"),
        ("torchattacks:LGV", {}, "needs trainloader: expected one of --attack list"),
        ("foolbox:LinfPGD", {"ball": BALLS["l2"]}, "goes by linf, given l2"),
        ("cleverhans:PGD", {}, "attack library 'cleverhans': expected foolbox or torchattacks"),
    ],
)
def test_wrong_names_are_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        library_attack(name, **options)


@pytest.mark.parametrize(
    ("name", "near"),
    [("pdg", "near are pgd"), ("deepfool", "torchattacks:DeepFool"), ("", "--att")],
)
def test_names_that_are_near_are_told(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        check_attack(name)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_not_installed_names_its_extra(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (library, f"{library}.attacks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'aigtool\[{library}\]'"):
        library_attack(f"{library}:PGD")


def test_an_attack_that_cannot_ask_gives_up(few: Batch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).eval()
    with pytest.raises(UserError, match="foolbox:FGSM gave up"):
        library_attack("foolbox:FGSM").moved(network, *few, [0.1])
