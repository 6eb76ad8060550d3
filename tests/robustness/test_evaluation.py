import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert, gate_policy, named_gates, recorded_decisions
from aigtool.data.images import ImageSet, open_images
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.attacks import fgsm
from aigtool.robustness.defenses import jpeg
from aigtool.robustness.evaluation import Judged, attack_accuracy
from aigtool.robustness.files import write_attack

KEYS = {
    "network",
    "attack",
    "norm",
    "steps",
    "epsilon",
    "defense",
    "quality",
    "attacker",
    "gate_gradient",
    "correct",
    "top1",
    "top1_of_clean_right",
    "images",
    "execution_rate",
    "gflops_executed",
    "gate_agreement",
}


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "train", to_tensor)


@pytest.fixture
def gated(small_network: nn.Module) -> Judged:
    network = convert(small_network)
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight, std=2.0)
    pixel_network = PixelNetwork(network, InputSpec.of(network)).eval()
    return Judged(pixel_network, count_flops(network, (3, 32, 32)), "argmax")


@pytest.fixture
def rows(gated: Judged, images: ImageSet) -> pd.DataFrame:
    networks = {"gated": gated, "open": Judged(gated.network, gated.flops, "open")}
    return attack_accuracy(networks, images, epsilons=(0.0, 8 / 255), batch_size=7)


def row(rows: pd.DataFrame, network: str, epsilon: float, defense: str) -> pd.Series:
    chosen = rows[
        (rows["network"] == network) & (rows["epsilon"] == epsilon) & (rows["defense"] == defense)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_rows_are_what_the_networks_answered(
    rows: pd.DataFrame, gated: Judged, images: ImageSet
) -> None:
    assert set(rows) == KEYS
    assert len(rows) == 2 * 2 * 2
    pixels = torch.stack([images[i][0] for i in range(24)])
    labels = torch.tensor([images[i][1] for i in range(24)])
    attacked = fgsm(gated.network, pixels, labels, epsilon=8 / 255)
    with torch.no_grad(), recorded_decisions(gated.network) as decisions:
        clean_right = gated.network(pixels).argmax(1) == labels
        clean = torch.stack([d.scale for d in decisions.values()], 1)
        right = gated.network(attacked).argmax(1) == labels
        executed = torch.stack([d.scale for d in decisions.values()], 1)
        defended = gated.network(jpeg(attacked, quality=75)).argmax(1) == labels
    found = row(rows, "gated", 8 / 255, "none")
    assert found["correct"] == right.sum()
    assert found["top1"] == pytest.approx(100 * right.float().mean().item())
    if clean_right.any():
        assert found["top1_of_clean_right"] == pytest.approx(
            100 * (right & clean_right).sum().item() / clean_right.sum().item()
        )
    assert found["execution_rate"] == pytest.approx(executed.mean().item())
    assert found["gate_agreement"] == pytest.approx((executed == clean).float().mean().item())
    assert found["gate_gradient"] == "straight-through"
    assert row(rows, "gated", 8 / 255, "jpeg")["correct"] == defended.sum()
    assert row(rows, "gated", 0.0, "none")["gate_agreement"] == 1.0


def test_open_gates_are_the_network_before(
    rows: pd.DataFrame, gated: Judged, images: ImageSet
) -> None:
    pixels = torch.stack([images[i][0] for i in range(24)])
    labels = torch.tensor([images[i][1] for i in range(24)])
    with gate_policy(gated.network, "open"):
        attacked = fgsm(gated.network, pixels, labels, epsilon=8 / 255)
        with torch.no_grad():
            right = gated.network(attacked).argmax(1) == labels
    found = row(rows, "open", 8 / 255, "none")
    assert found["correct"] == right.sum()
    assert found["execution_rate"] == 1.0
    assert found["gflops_executed"] == pytest.approx(gated.flops.gflops_dense)
    assert pd.isna(found["gate_gradient"])
    assert pd.isna(found["gate_agreement"])
    assert [gate.policy for _, gate in named_gates(gated.network)] == ["argmax"] * 9


def test_what_is_asked_twice_is_answered_once(gated: Judged, images: ImageSet) -> None:
    rows = attack_accuracy(
        {"gated": gated}, images, epsilons=(0.1, 0.1), qualities=(75, 75), batch_size=9
    )
    assert len(rows) == 2
    assert rows["top1"].max() <= 100


def test_files(rows: pd.DataFrame, tmp_path: Path) -> None:
    paths = write_attack(rows, tmp_path / "attack", "test images")
    assert [path.name for path in paths] == ["attack.csv", "attack.json", "attack.png"]
    again = json.loads(paths[1].read_text())["rows"]
    assert len(again) == len(rows)
    assert again[0]["quality"] is None
    assert len(pd.read_csv(paths[0])) == len(rows)
    assert paths[2].stat().st_size > 10_000


def test_wrong_cases_are_told(gated: Judged, images: ImageSet) -> None:
    with pytest.raises(UserError, match="no epsilon"):
        attack_accuracy({"gated": gated}, images, epsilons=())
    with pytest.raises(UserError, match="epsilon -1"):
        attack_accuracy({"gated": gated}, images, epsilons=(-1.0,))
    with pytest.raises(UserError, match="JPEG quality 0"):
        attack_accuracy({"gated": gated}, images, epsilons=(0.1,), qualities=(0,))
