"""Attacks on compute, on gates of which the most and the least that can be executed is known."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import convert, named_gates, recorded_decisions
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.balls import L2
from aigtool.robustness.cases import Judged
from aigtool.robustness.compute import GOALS, Goal, compute_attack
from aigtool.robustness.slowdown import Timed, attack_compute

EPSILON = 0.1
MEAN = 0.5
OPENS_ABOVE = (0.35, 0.45, 0.48, 0.52, 0.58, 0.7)
"""The mean pixel at which each gate opens: within 0.1 of 0.5 all but the first and the last."""


class _Block(nn.Module):
    """Adds nothing: every block gets the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x) + x)


class _Planted(nn.Module):
    """Blocks in a row, and an answer that is 0 while the mean pixel is below ``turns_at``."""

    def __init__(self, turns_at: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block() for _ in OPENS_ABOVE))
        self.turns_at = turns_at

    def forward(self, x: Tensor) -> Tensor:
        mean = self.blocks(x).mean(dim=(1, 2, 3))
        return torch.stack([20 * (self.turns_at - mean), torch.zeros_like(mean)], 1)


def planted(turns_at: float = 2.0) -> PixelNetwork:
    """Return a network whose gates' logits are 10 times the mean pixel less their threshold."""
    network = convert(_Planted(turns_at), width=1, input_size=(3, 4, 4))
    for (_, gate), threshold in zip(named_gates(network), OPENS_ABOVE, strict=True):
        with torch.no_grad():
            gate.fc1.weight.fill_(1 / 3)
            gate.fc1.bias.zero_()
            gate.norm.eps = 0.0
            gate.fc2.weight.copy_(torch.tensor([[0.0], [10.0]]))
            gate.fc2.bias.zero_()
            gate.threshold.fill_(10 * threshold)
    return PixelNetwork(network, InputSpec((3, 4, 4), (0.0,) * 3, (1.0,) * 3)).eval()


def executed(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad(), recorded_decisions(network) as decisions:
        network(pixels)
    return torch.stack([one.scale > 0 for one in decisions.values()], 1)


@pytest.fixture
def pixels() -> Tensor:
    """Four images whose mean is 0.5, of which no pixel is within 0.1 of black or white."""
    noise = 0.6 * torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.3
    return MEAN + noise - noise.mean(dim=(1, 2, 3), keepdim=True)


COSTS = np.ones(len(OPENS_ABOVE))


def test_the_most_and_the_least_are_reached(pixels: Tensor) -> None:
    network = planted()
    assert executed(network, pixels).sum(1).tolist() == [3] * 4
    moved = {
        goal: compute_attack(network, pixels, COSTS, epsilon=EPSILON, goal=goal) for goal in GOALS
    }
    assert executed(network, moved["raise"]).sum(1).tolist() == [5] * 4
    assert executed(network, moved["lower"]).sum(1).tolist() == [1] * 4
    for attacked in moved.values():
        assert (attacked - pixels).abs().max() <= EPSILON + 2**-24
        assert 0 <= attacked.min() <= attacked.max() <= 1


def test_in_l2_too(pixels: Tensor) -> None:
    """A length of 0.5 moves the mean of 48 pixels by 0.5 / sqrt(48), that is by 0.072."""
    network = planted()
    moved = compute_attack(network, pixels, COSTS, epsilon=0.5, ball=L2())
    assert executed(network, moved).sum(1).tolist() == [4] * 4
    assert L2().lengths(moved - pixels).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("turns_at", "most"), [(0.55, 4), (0.51, 3)])
def test_the_answer_stays(turns_at: float, most: int, pixels: Tensor) -> None:
    """The answer turns before the gate that opens at 0.58 does, or that at 0.52."""
    network = planted(turns_at)
    moved = compute_attack(network, pixels, COSTS, epsilon=EPSILON)
    with torch.no_grad():
        assert network(moved).argmax(1).tolist() == [0] * 4
    assert executed(network, moved).sum(1).tolist() == [most] * 4


def test_costs_are_weighed() -> None:
    """Of two gates that cannot both open, the dearer one does."""
    network = convert(_Planted(2.0), width=1, input_size=(3, 4, 4))
    pixel_network = PixelNetwork(network, InputSpec((3, 4, 4), (0.0,) * 3, (1.0,) * 3)).eval()
    for number, (_, gate) in enumerate(named_gates(network)):
        with torch.no_grad():
            gate.fc1.weight.fill_(0.0)
            gate.fc1.weight[0, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[number % 2]
            gate.fc1.bias.fill_(1.0)
            gate.norm.eps = 0.0
            gate.fc2.weight.copy_(torch.tensor([[0.0], [10.0]]))
            gate.fc2.bias.zero_()
            gate.threshold.fill_(10.5)
    grey = torch.full((1, 3, 4, 4), 0.5)
    for dear in (0, 1):
        costs = np.where(np.arange(len(OPENS_ABOVE)) % 2 == dear, 5.0, 1.0)
        moved = compute_attack(pixel_network, grey, costs, epsilon=EPSILON)
        assert executed(pixel_network, moved)[0].tolist() == [n % 2 == dear for n in range(6)]


def judged_planted() -> Judged:
    network = planted()
    return Judged(network, count_flops(network.network, (3, 4, 4)), "argmax")


def test_rows(pixels: Tensor) -> None:
    judged = judged_planted()
    labels = torch.tensor([0, 0, 0, 1])
    timed = Timed(judged.network, judged.network, every=3)
    done: list[int] = []
    rows = attack_compute(
        judged,
        [(pixels[:3], labels[:3]), (pixels[3:], labels[3:])],
        epsilons=[0.05, EPSILON],
        timed=timed,
        progress=done.append,
    )
    assert sum(done) == 4 * 4
    assert rows["goal"].tolist() == ["raise", "raise", "lower", "lower"]
    up = rows[(rows["goal"] == "raise") & (rows["epsilon"] == EPSILON)].iloc[0]
    one = judged.flops.gated_blocks[0].skippable
    assert up["gflops_attacked"] - up["gflops_clean"] == pytest.approx(2 * one)
    assert up["gflops_worst"] == pytest.approx(up["gflops_attacked"])
    saved = judged.flops.gflops_dense - up["gflops_clean"]
    assert up["saving_destroyed"] == pytest.approx(2 * one / saved)
    assert (up["answers_kept"], up["correct_clean"], up["correct"], up["images"]) == (1.0, 3, 3, 4)
    assert (up["execution_rate_clean"], up["execution_rate"]) == (3 / 6, 5 / 6)
    assert rows["timed_images"].tolist() == [2] * 4
    times = rows[["dense_ms", "clean_ms", "attacked_ms", "attacked_p95_ms"]]
    assert (times > 0).all(axis=None)


def test_a_larger_ball_is_no_worse(pixels: Tensor) -> None:
    """What was found within a smaller one lies in it too."""
    network = planted()
    small = compute_attack(network, pixels, COSTS, epsilon=0.05, steps=20)
    alone = compute_attack(network, pixels, COSTS, epsilon=EPSILON, steps=1, step_size=1e-6)
    known = compute_attack(
        network, pixels, COSTS, epsilon=EPSILON, steps=1, step_size=1e-6, known=small
    )
    assert executed(network, alone).sum() < executed(network, small).sum()
    assert torch.equal(known, small)
    rows = attack_compute(
        judged_planted(), [(pixels, torch.zeros(4, dtype=torch.long))], epsilons=[EPSILON, 0.05]
    )
    assert rows["epsilon"].tolist() == [0.05, EPSILON] * 2
    assert rows["gflops_attacked"].iloc[1] >= rows["gflops_attacked"].iloc[0]


def test_timed_images_are_spread_over_batches(pixels: Tensor) -> None:
    """Every third of six in batches of four and two: the first and the fourth."""
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(1, 2)

    judged = judged_planted()
    six = torch.cat([pixels, 1 - pixels[:2]])
    labels = torch.zeros(6, dtype=torch.long)
    attack_compute(
        judged,
        [(six[:4], labels[:4]), (six[4:], labels[4:])],
        epsilons=[0.05],
        goals=["raise"],
        steps=1,
        timed=Timed(judged.network, Watch(), every=3),
    )
    warm, first, second = seen
    assert torch.equal(torch.cat([first, second]), six[[0, 3]])
    assert torch.equal(warm, six[:1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epsilon": 2.0}, "epsilon 2, was 2/255 meant"),
        ({"epsilon": 0.1, "steps": 0}, "steps 0: expected at least 1"),
        ({"epsilon": 0.1, "step_size": -1.0}, "step size -1: expected a length above 0"),
        ({"epsilon": 0.1, "goal": "up"}, "goal 'up': expected raise or lower"),
        ({"epsilon": 0.1, "costs": np.ones(2)}, "costs given: 2; gates: 6"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str, pixels: Tensor) -> None:
    with pytest.raises(UserError, match=told):
        compute_attack(planted(), pixels, **{"costs": COSTS, **options})


def test_networks_without_gates_are_told(pixels: Tensor) -> None:
    judged = judged_planted()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(UserError, match="the network has no gates"):
        compute_attack(plain, pixels, COSTS, epsilon=0.1)
    batches = [(pixels, torch.zeros(4, dtype=torch.long))]
    with pytest.raises(UserError, match="gates decide by argmax"):
        drawn = Judged(judged.network, judged.flops, "sampled")
        attack_compute(drawn, batches, epsilons=[0.1])
    with pytest.raises(UserError, match="gates decide by argmax"):
        opened = Judged(judged.network, judged.flops, "open")
        attack_compute(opened, batches, epsilons=[0.1])
    goals: list[Goal] = ["raise"]
    with pytest.raises(UserError, match="epsilons above 0"):
        attack_compute(judged, batches, epsilons=[0.0], goals=goals)
