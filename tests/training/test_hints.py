"""Hints, against sums by hand and between networks that share stages or do not."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert
from aigtool.data.images import open_images
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.models.description import Description, InputSpec
from aigtool.models.files import Model
from aigtool.models.zoo import create_network
from aigtool.training.config import FinetuneConfig
from aigtool.training.hints import recorded_features, shared_places, stage_ends
from aigtool.training.loop import finetune
from aigtool.training.objective import Objective
from aigtool.training.options import complete, places_of


@pytest.mark.parametrize(
    ("name", "size", "ends"),
    [
        ("cifar_resnet20", 32, ["layer1.2", "layer2.2", "layer3.2"]),
        ("seresnext26t_32x4d", 64, [f"layer{stage}.1" for stage in (1, 2, 3, 4)]),
        ("resnetv2_18", 64, [f"stages.{stage}.blocks.1" for stage in (0, 1, 2, 3)]),
    ],
)
def test_stages_end_where_shapes_change(name: str, size: int, ends: list[str]) -> None:
    network = create_network(name)
    assert stage_ends(network, (3, size, size)) == ends
    assert stage_ends(convert(network), (3, size, size)) == ends


def test_the_loss_adds_the_share_of_variance_that_is_missed() -> None:
    torch.manual_seed(0)
    network, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU()) for _ in range(2))
    pixels, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    flops = NetworkFlops(gflops_dense=1.0, params=1, blocks=())
    losses = []
    for weight in (0.0, 3.0):
        config = FinetuneConfig(distill=0.5, hints=weight)
        objective = Objective(config, {}, flops, teacher, images=5, classes=3, places=["1", "2"])
        with objective.watching(network):
            losses.append(objective.task_loss(pixels, labels, network(pixels)))
    missed = []
    for place in (2, 3):
        with torch.no_grad():
            want = teacher[:place](pixels)
        given = network[:place](pixels)
        missed.append((given - want).square().sum() / (want - want.mean()).square().sum())
    torch.testing.assert_close(losses[1] - losses[0], 3 * (missed[0] + missed[1]) / 2)
    (gradient,) = torch.autograd.grad(losses[1] - losses[0], [network[1].weight])
    assert gradient.abs().max() > 0
    assert not network[1]._forward_hooks


def test_a_network_of_other_stages_gives_no_hints(
    small_network: nn.Module, image_folder: Path, tmp_path: Path
) -> None:
    size = (3, 32, 32)
    deeper, wider = create_network("cifar_resnet32", num_classes=3), create_network("resnet18")
    assert shared_places(small_network, small_network, size)
    assert shared_places(small_network, deeper, size) == []
    assert shared_places(small_network, wider, size) == []
    thin = timm.create_model("resnet26", channels=(32, 64, 128, 256))
    assert shared_places(create_network("resnet26"), thin, size) == []

    model = Model(convert(small_network), Description("", 3, input=InputSpec(size=size)))
    own = places_of(model, None)
    assert complete(FinetuneConfig(), model, None, own).hints == 10
    taught = Model(deeper, Description("cifar_resnet32", 3, input=InputSpec(size=size)))
    assert complete(FinetuneConfig(), model, taught, places_of(model, taught)).hints == 0
    assert complete(FinetuneConfig(distill=0.0), model, None, own).hints == 0
    train, val = (open_images(str(image_folder), part, to_tensor) for part in ("train", "val"))
    config = FinetuneConfig(hints=1.0)
    with pytest.raises(UserError, match="other stages, or none"):
        finetune(model, train, val, config, out=tmp_path / "run", teacher=taught)
    assert not (tmp_path / "run").exists()


def test_features_draw_near_those_before(
    gated_network: nn.Module, image_folder: Path, tmp_path: Path
) -> None:
    """A tenth and more of what closed gates lose is learnt again in 15 small steps."""
    torch.manual_seed(0)
    model = Model(gated_network, Description("", 3, input=InputSpec(size=(3, 32, 32))))
    train, val = (open_images(str(image_folder), part, to_tensor) for part in ("train", "val"))
    options = {"information": 0.0, "rate_weight": 0.0, "gate_lr": 0.0, "noise_hold": 1.0}
    config = FinetuneConfig(
        epochs=5, batch_size=8, aug_repeats=1, lr=1e-3, noise_end=1.0, hints=10.0, **options
    )
    losses = finetune(model, train, val, config, out=tmp_path).metrics
    assert losses[-1]["train_loss"] < 0.9 * losses[0]["train_loss"]


def test_features_are_those_of_the_latest_pass(small_network: nn.Module) -> None:
    with recorded_features(small_network, ["layer1.2"]) as features:
        for count in (1, 4):
            small_network(torch.rand(count, 3, 32, 32))
            assert features["layer1.2"].shape == (count, 16, 32, 32)
