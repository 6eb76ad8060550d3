"""Rows are what the networks answered: each attack by hand beside them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import gate_policy, named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.intervals import wilson_interval
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.attacks import fgsm, frozen_gates, noise, pgd
from aigtool.robustness.balls import BALLS
from aigtool.robustness.cases import Attacked, Judged
from aigtool.robustness.defenses import Defended, Defense, jpeg, jpeg_defense
from aigtool.robustness.evaluation import attack_networks, attacks_an_image, pixel_batches
from aigtool.robustness.libraries import library_attack
from aigtool.robustness.suite import Fgsm, Noise, Pgd
from aigtool.robustness.tables import accuracy_rows, gate_rows

Batch = tuple[Tensor, Tensor]
EPSILON = 8 / 255
DESIGNED = {
    *("network", "attack", "norm", "steps", "epsilon", "defense", "quality", "attacker"),
    *("gate_gradient", "correct", "top1", "top1_of_clean_right", "images", "execution_rate"),
    *("gflops_executed", "gate_agreement"),
}


def rows_of(networks: dict[str, Judged], batches: Any, **options: Any) -> pd.DataFrame:
    return accuracy_rows(attack_networks(networks, batches, **options))


def row(rows: pd.DataFrame, **chosen: Any) -> "pd.Series[Any]":
    for column, value in chosen.items():
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def answered(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return answers, and which blocks were executed."""
    with torch.no_grad(), recorded_decisions(network) as decisions:
        answers = network(pixels).argmax(1)
    return answers, torch.stack([one.scale > 0 for one in decisions.values()], 1)


def test_rows_are_what_the_networks_answered(
    networks: dict[str, Judged], images: ImageSet, batch: Batch
) -> None:
    rows = rows_of(
        networks,
        load_batches(images, batch_size=7),
        epsilons=(0.0, EPSILON),
        defenses=[jpeg_defense()],
    )
    assert {*rows} >= DESIGNED
    assert len(rows) == 2 * 2 * 2
    pixels, labels = batch
    network = networks["gated"].network
    attacked = fgsm(network, pixels, labels, epsilon=EPSILON)
    answers, clean = answered(network, pixels)
    before = answers == labels
    answers, executed = answered(network, attacked)
    right = answers == labels
    found = row(rows, network="gated", epsilon=EPSILON, defense="none")
    assert found["correct"] == right.sum()
    assert found["top1"] == pytest.approx(100 * right.float().mean().item())
    low, high = wilson_interval(int(right.sum()), len(right))
    assert (found["top1_low"], found["top1_high"]) == pytest.approx((100 * low, 100 * high))
    assert found["clean_right"] == before.sum()
    assert found["correct_of_clean_right"] == (right & before).sum()
    assert found["execution_rate"] == pytest.approx(executed.float().mean().item())
    assert found["gate_agreement"] == pytest.approx((executed == clean).float().mean().item())
    assert found["gate_gradient"] == "straight-through"
    flops = networks["gated"].flops.executed(executed.numpy(), "argmax")
    assert found["gflops_executed"] == pytest.approx(flops.mean())
    defended, _ = answered(network, jpeg(attacked, quality=75))
    behind = row(rows, network="gated", epsilon=EPSILON, defense="jpeg")
    assert behind["correct"] == (defended == labels).sum()
    assert behind["attacker"] == "static"
    assert row(rows, network="gated", epsilon=0.0, defense="none")["gate_agreement"] == 1.0


def test_open_gates_are_the_network_before(
    networks: dict[str, Judged], images: ImageSet, batch: Batch
) -> None:
    rows = rows_of(networks, load_batches(images, batch_size=7), epsilons=(0.0, EPSILON))
    judged = networks["gated"]
    with gate_policy(judged.network, "open"):
        attacked = fgsm(judged.network, *batch, epsilon=EPSILON)
        right = answered(judged.network, attacked)[0] == batch[1]
    found = row(rows, network="open", epsilon=EPSILON)
    assert found["correct"] == right.sum()
    assert found["execution_rate"] == 1.0
    assert found["gflops_executed"] == pytest.approx(judged.flops.gflops_dense)
    assert found[["gate_gradient", "gate_agreement", "difference"]].isna().all()
    assert [gate.policy for _, gate in named_gates(judged.network)] == ["argmax"] * 9


def test_networks_are_paired_image_by_image(networks: dict[str, Judged], batch: Batch) -> None:
    found = attack_networks(networks, [batch], epsilons=(EPSILON,))
    right = {case.network: np.concatenate(t.right) for case, t in found.tallies.items()}
    apart = 100 * (right["gated"].astype(float) - right["open"])
    told = row(accuracy_rows(found), network="gated")
    assert told["difference"] == pytest.approx(apart.mean())
    assert told["difference_stderr"] == pytest.approx(apart.std() / len(apart) ** 0.5)
    assert 0 <= told["mcnemar_p"] <= 1


@pytest.mark.parametrize("gradient", ["straight-through", "frozen"])
def test_who_knows_of_a_defence_attacks_through_it(
    gradient: Any, networks: dict[str, Judged], batch: Batch
) -> None:
    defense = jpeg_defense(50)
    rows = rows_of(
        networks,
        [batch],
        epsilons=(0.0, EPSILON),
        attacks=[Pgd(steps=2)],
        defenses=[defense],
        attackers=("static", "adaptive"),
        gate_gradients=(gradient,),
    )
    seen = Defended(networks["gated"].network, defense)
    if gradient == "frozen":
        with frozen_gates(seen, batch[0]):
            attacked = pgd(seen, *batch, epsilon=EPSILON, steps=2)
    else:
        attacked = pgd(seen, *batch, epsilon=EPSILON, steps=2)
    right = answered(seen, attacked)[0] == batch[1]
    found = row(rows, network="gated", epsilon=EPSILON, attacker="adaptive")
    assert (found["correct"], found["quality"]) == (right.sum(), 50)
    assert len(rows[rows["attacker"].isna()]) == 4  # undefended, once


def test_the_worst_is_wrong_if_either_is(networks: dict[str, Judged]) -> None:
    gradients: Any = ("straight-through", "frozen", "worst")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(48, 3, 32, 32, generator=generator)
    network = networks["gated"].network
    with torch.no_grad(), recorded_decisions(network) as decisions:
        network(pixels)
        for name, gate in named_gates(network):  # so that each gate is about to turn
            gate.threshold.fill_(decisions[name].logit.median())
            network(pixels)
    labels = answered(network, pixels)[0]
    options: dict[str, Any] = {"epsilons": (0.0, 3 / 255), "attacks": [Pgd(steps=3)]}
    found = attack_networks(networks, [(pixels, labels)], gate_gradients=gradients, **options)
    right = {
        case.gate_gradient: np.concatenate(tally.right)
        for case, tally in found.tallies.items()
        if case.network == "gated" and case.epsilon
    }
    seen, held, worst = (right[gradient] for gradient in gradients)
    assert (worst == (seen & held)).all()
    assert (worst != held).any()
    assert (worst != seen).any()
    assert {case.gate_gradient for case in found.tallies if case.network == "open"} == {None}
    gated = {"gated": networks["gated"]}
    alone = rows_of(gated, [(pixels, labels)], gate_gradients=("worst",), **options)
    assert {*alone["gate_gradient"].dropna()} == {"worst"}
    told = row(alone, network="gated", epsilon=3 / 255)
    assert told["correct"] == worst.sum()


def test_right_before_the_attack_is_told_without_clean_rows(
    networks: dict[str, Judged], batch: Batch
) -> None:
    options: dict[str, Any] = {"defenses": [jpeg_defense()]}
    alone = rows_of(networks, [batch], epsilons=(EPSILON,), **options)
    beside = rows_of(networks, [batch], epsilons=(0.0, EPSILON), **options)
    columns = ["clean_right", "correct_of_clean_right", "correct"]
    attacked = beside[beside["epsilon"] > 0].reset_index(drop=True)
    assert alone[columns].equals(attacked[columns])
    assert (beside["clean_right"] == beside["correct"])[beside["epsilon"] == 0].all()


def test_the_worst_reaches_a_target_if_either_does(networks: dict[str, Judged]) -> None:
    pixels = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = networks["gated"].network
    labels = answered(network, pixels)[0]
    seen: list[Attacked] = []
    found = attack_networks(
        networks,
        [(pixels, labels)],
        epsilons=(2 / 255,),
        attacks=[Pgd(steps=3, is_targeted=True)],
        gate_gradients=("worst",),
        target="least-likely",
        watch=seen.append,
    )
    with torch.no_grad():
        least = network(pixels).argmin(1)
    either = torch.zeros(48, dtype=torch.bool)
    for one in seen:
        if one.case.network == "gated":
            either |= answered(network, one.moved)[0] == least
    assert row(accuracy_rows(found), network="gated")["hits"] == either.sum()


def test_two_gated_networks_are_paired_too(judged: Judged, batch: Batch) -> None:
    gradients: Any = ("straight-through", "frozen")
    networks = {"one": judged, "other": judged}
    rows = rows_of(networks, [batch], epsilons=(EPSILON,), gate_gradients=gradients)
    assert rows[rows["network"] == "one"]["difference"].tolist() == [0.0, 0.0]


def test_a_differentiable_defence_is_seen_as_it_is(
    networks: dict[str, Judged], batch: Batch
) -> None:
    seen: list[Attacked] = []
    flipped = Defense("flipped", lambda pixels: pixels.flip(3), is_differentiable=True)
    rows_of(
        networks,
        [batch],
        epsilons=(EPSILON,),
        defenses=[flipped],
        attackers=("adaptive",),
        watch=seen.append,
    )
    wanted = fgsm(networks["gated"].network, batch[0].flip(3), batch[1], epsilon=EPSILON).flip(3)
    aware = [one for one in seen if one.case.defense == "flipped"]
    assert torch.equal(aware[0].moved, wanted)
    halved = Defense("halved", lambda pixels: pixels[..., ::2])
    with pytest.raises(UserError, match="defence halved makes"):
        Defended(networks["gated"].network, halved)(batch[0].clone().requires_grad_())


def test_held_gates_are_those_of_the_batch(judged: Judged, batch: Batch) -> None:
    """torchattacks' DeepFool asks image by image."""
    with pytest.raises(UserError, match="decisions of 24 images are held, and 1 came"):
        attack_networks(
            {"gated": judged},
            [batch],
            epsilons=(1.0,),
            attacks=[library_attack("torchattacks:DeepFool")],
            gate_gradients=("frozen",),
        )


def test_progress_counts_attacks(networks: dict[str, Judged], batch: Batch) -> None:
    ways: dict[str, Any] = {
        "attacks": [Fgsm(), Noise()],
        "defenses": [jpeg_defense()],
        "attackers": ("static", "adaptive"),
        "gate_gradients": ("worst",),
    }
    done: list[int] = []
    attack_networks(networks, [batch], epsilons=(0.1,), progress=done.append, **ways)
    # FGSM of both attackers, by what each of two sees of the gates or by one without; noise once.
    assert attacks_an_image(networks, **ways) == 2 * 2 + 2 + 1 + 1
    assert sum(done) == len(batch[1]) * attacks_an_image(networks, **ways)


def test_noise_sees_nothing_and_is_drawn_anew_each_batch(
    networks: dict[str, Judged], batch: Batch
) -> None:
    seen: list[Attacked] = []
    pixels, labels = batch
    halves = [(pixels[:12], labels[:12]), (pixels[12:], labels[12:])]
    rows = rows_of(
        networks,
        halves,
        epsilons=(0.1,),
        attacks=[Noise()],
        defenses=[jpeg_defense()],
        attackers=("static", "adaptive"),
        gate_gradients=("frozen",),
        seed=3,
        watch=seen.append,
    )
    assert rows["gate_gradient"].isna().all()
    assert {*rows["attacker"].dropna()} == {"static"}
    assert torch.equal(seen[0].moved, noise(pixels[:12], epsilon=0.1, seed=3))
    added = [one.moved - one.pixels for one in seen if one.case.network == "gated"]
    assert not torch.equal(*added)


def test_targets(networks: dict[str, Judged], batch: Batch) -> None:
    pixels, labels = batch
    network = networks["gated"].network
    seen: list[Attacked] = []
    options: dict[str, Any] = {"epsilons": (0.1,), "attacks": [Pgd(steps=3, is_targeted=True)]}
    rows = rows_of(networks, [batch], target=2, watch=seen.append, **options)
    wanted = pgd(
        network, pixels, torch.full_like(labels, 2), epsilon=0.1, steps=3, is_targeted=True
    )
    assert torch.equal(seen[0].moved[labels != 2], wanted[labels != 2])
    assert torch.equal(seen[0].moved[labels == 2], pixels[labels == 2])
    found = row(rows, network="gated")
    assert found["aimed"] == (labels != 2).sum()
    assert found["hits"] == ((answered(network, wanted)[0] == 2) & (labels != 2)).sum()
    seen.clear()
    rows_of(networks, [batch], target="least-likely", watch=seen.append, **options)
    with torch.no_grad():
        least = network(pixels).argmin(1)
    wanted = pgd(network, pixels, least, epsilon=0.1, steps=3, is_targeted=True)
    others = least != labels
    assert torch.equal(seen[0].moved[others], wanted[others])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eight_bits_are_what_a_file_holds_and_within_the_ball(
    norm: str, networks: dict[str, Judged], batch: Batch
) -> None:
    seen: list[Attacked] = []
    epsilon = {"linf": 1.7 / 255, "l2": 0.5}[norm]
    rows_of(
        networks,
        [batch],
        epsilons=(epsilon,),
        attacks=[Pgd(BALLS[norm], steps=3)],
        is_eight_bit=True,
        watch=seen.append,
    )
    for one in seen:
        levels = 255 * one.moved
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert BALLS[norm].lengths(one.moved - one.pixels).max() <= epsilon + 2**-23
        assert not torch.equal(one.moved, one.pixels)


def test_a_defence_of_ones_own(networks: dict[str, Judged], batch: Batch) -> None:
    flipped = Defense("flipped", lambda pixels: pixels.flip(3))
    rows = rows_of(networks, [batch], epsilons=(0.0,), defenses=[flipped])
    right = answered(networks["gated"].network, batch[0].flip(3))[0] == batch[1]
    assert row(rows, network="gated", defense="flipped")["correct"] == right.sum()


def test_gates_by_group(networks: dict[str, Judged], images: ImageSet, batch: Batch) -> None:
    found = attack_networks(networks, load_batches(images, batch_size=5), epsilons=(0.0, EPSILON))
    gates = gate_rows(found, {"cold": [0], "warm": [1, 2], "none": [7]})
    assert {*gates["network"]} == {"gated"}
    assert {*gates["group"]} == {"all", "cold", "warm"}
    network = networks["gated"].network
    _, clean = answered(network, batch[0])
    _, executed = answered(network, fgsm(network, *batch, epsilon=EPSILON))
    names = [name for name, _ in named_gates(network.network)]
    for group, chosen in (("all", batch[1] >= 0), ("warm", batch[1] >= 1)):
        told = gates[(gates["group"] == group) & (gates["epsilon"] > 0)]
        assert told["gate"].tolist() == names
        assert told["execution_rate"].tolist() == pytest.approx(
            executed[chosen].float().mean(0).tolist()
        )
        same = (executed == clean)[chosen].float().mean(0)
        assert told["gate_agreement"].tolist() == pytest.approx(same.tolist())


class _FarFromGrey(nn.Module):
    """Answers 0 where the mean pixel is more than 0.2 from 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        far = (x.mean(dim=(1, 2, 3)) - 0.5) ** 2
        return torch.stack([far, torch.full_like(far, 0.04)], 1)


def test_an_attack_that_a_defence_misleads_is_doubted() -> None:
    """Light images become dark: straight through that, darker seems to be what makes grey."""
    network = PixelNetwork(_FarFromGrey(), InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3)).eval()
    batch = 0.1 * torch.rand(8, 3, 4, 4) + 0.7, torch.zeros(8, dtype=torch.long)
    rows = rows_of(
        {"dense": Judged(network, NetworkFlops(1.0, 0, ()), "open")},
        [batch],
        epsilons=(0.0, 0.1),
        defenses=[Defense("inverted", lambda pixels: 1 - pixels)],
        attackers=("static", "adaptive"),
    )
    assert row(rows, epsilon=0.1, attacker="static")["correct"] == 0
    misled = row(rows, epsilon=0.1, attacker="adaptive")
    assert (misled["correct"], misled["doubt"]) == (8, True)
    assert rows["doubt"].sum() == 1


def test_three_loaders_give_the_same_adversarial_pixels(
    networks: dict[str, Judged], batch: Batch
) -> None:
    """But for gradients about zero, whose sign the rounding of pixels may turn: counted."""
    pixels, labels = batch
    own = torch.tensor([0.3, 0.4, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    spec = InputSpec.of(networks["gated"].network.network)
    imagenet = tuple(torch.tensor(part).view(3, 1, 1) for part in (spec.mean, spec.std))
    seen: list[list[Attacked]] = []
    for mean, std in ((torch.zeros(3, 1, 1), torch.ones(3, 1, 1)), imagenet, own):
        loader = [((pixels - mean) / std, labels)]
        seen.append([])
        attack_networks(
            networks,
            pixel_batches(loader, mean.flatten().tolist(), std.flatten().tolist()),
            epsilons=(EPSILON,),
            watch=seen[-1].append,
        )
    for first, *others in zip(*seen, strict=True):
        for other in others:
            apart = (other.moved - first.moved).abs() > 1e-6
            flips = apart.sum().item()
            # A flip moves a pixel to the other side, and is rare.
            assert flips <= 1e-3 * apart.numel()
            distance = (other.moved - first.moved).abs()[apart]
            assert ((distance - 2 * EPSILON).abs() < 1e-5).all() or flips == 0


def test_what_is_asked_twice_is_answered_once(networks: dict[str, Judged], batch: Batch) -> None:
    assert len(rows_of(networks, [batch], epsilons=(0.1, 0.1))) == 2


def test_wrong_cases_are_told(networks: dict[str, Judged], batch: Batch) -> None:
    def told(match: str, networks: dict[str, Judged] = networks, **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            attack_networks(networks, [batch], **{"epsilons": (0.1,), **options})

    told("no epsilon", epsilons=())
    told("epsilon -1", epsilons=(-1.0,))
    told("epsilon 8, was 8/255 meant", epsilons=(8.0,))
    told("untargeted, target 1", target=1)
    told("attack fgsm twice", attacks=[Fgsm(), Fgsm()])
    told("defence jpeg twice", defenses=[jpeg_defense(), jpeg_defense()])
    told("target 3: expected least-likely or a class", target=3, attacks=[Fgsm(is_targeted=True)])
    told("attacker 'adaptiv': expected some of static, adaptive", attackers=("adaptiv",))
    told("gate gradient 'frozn': expected some of", gate_gradients=("frozn",))
    with pytest.raises(UserError, match="no images to attack"):
        attack_networks(networks, [], epsilons=(0.1,))
    with pytest.raises(UserError, match=r"pixels from .* to 2.*: expected 0 to 1; pixel_batches"):
        attack_networks(networks, [(255 * batch[0], batch[1])], epsilons=(0.1,))
    without = {"open": networks["open"]}
    told("no network here has gates", networks=without, gate_gradients=("frozen",))
    with pytest.raises(UserError, match="labels from 0 to 3, the network has 3 outputs"):
        attack_networks(networks, [(batch[0], batch[1] + (batch[1] == 2))], epsilons=(0.1,))
