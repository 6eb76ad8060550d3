import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from aigtool.conversion import convert, gate_policy
from aigtool.discovery import find_blocks
from aigtool.errors import UserError
from aigtool.models.files import load_model, save_model
from aigtool.models.origin import create_model
from aigtool.models.zoo import (
    count_classes,
    create_network,
    describe,
    list_networks,
    look_up,
    published_class_names,
    published_weights,
)


def test_the_family_is_worked_out_from_the_registries() -> None:
    names = list_networks()
    assert len(names) == len(set(names))
    assert {"resnet50", "resnetv2_50", "seresnet50", "torchvision:resnet50"} <= set(names)
    assert sum(name.startswith("torchvision:") for name in names) == 10
    assert [name for name in names if name.startswith("cifar_")] == [
        f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)
    ]
    assert "a1_in1k" in published_weights("resnet50")


@pytest.mark.parametrize(
    ("depth", "params"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnets_have_the_published_size(depth: int, params: int) -> None:
    """He et al. 2016, table 6, rounds them to 0.27, 0.46, 0.66, 0.85 and 1.7 M."""
    network = create_network(f"cifar_resnet{depth}")
    assert sum(p.numel() for p in network.parameters()) == params
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth


def test_number_of_classes() -> None:
    assert count_classes(create_network("resnet18", num_classes=7)) == 7
    assert count_classes(create_network("torchvision:resnet18", num_classes=7)) == 7
    assert published_class_names(create_network("cifar_resnet20", num_classes=7)) is None
    with pytest.raises(UserError, match="number of classes 0"):
        create_network("resnet18", num_classes=0)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet5O", "resnet50"),
        ("cifar_resnet57", "cifar_resnet56"),
        ("torchvision:resnet51", "torchvision:resnet50"),
        ("zzz", "aigtool models"),
        ("pytorch:resnet50", "'pytorch' is no library; expected torchvision:"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        create_network(name)


def test_published_weights_without_a_network_end_in_one_line() -> None:
    with pytest.raises(UserError, match="could not be built with its published weights"):
        create_network("resnet18.a1_in1k", pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50.zzz", "no weights 'zzz' of resnet50: expected a1_in1k"),
        ("torchvision:resnet18.V9", "no weights 'V9' of torchvision:resnet18: .* IMAGENET1K_V1"),
        ("cifar_resnet20", "no published weights: give your own with --weights"),
        ("local-dir:nowhere", "'local-dir:nowhere' could not be built"),
    ],
)
def test_published_weights_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_network(name, pretrained=True)


def test_a_classifier_of_the_published_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision.models.resnet18()
    monkeypatch.setattr(
        torchvision.models._api.WeightsEnum,
        "get_state_dict",
        lambda *_args, **_options: source.state_dict(),
    )
    for classes, kept in ((None, True), (1000, True), (7, False)):
        network = create_network("torchvision:resnet18", pretrained=True, num_classes=classes)
        assert (network.fc.weight.shape == source.fc.weight.shape) == kept
        assert not kept or torch.equal(network.fc.weight, source.fc.weight)
    assert create_network("torchvision:mobilenet_v2", num_classes=7).classifier[1].out_features == 7


def test_torchvisions_weights_bring_their_input() -> None:
    name = "torchvision:resnet50.IMAGENET1K_V2"
    description = describe(name, create_network(name))
    assert description.source == name
    assert description.input.crop_pct == pytest.approx(224 / 232)
    assert description.input.interpolation == "bilinear"
    assert description.class_names is not None
    assert description.class_names[0] == "n01440764"
    plain = "torchvision:resnet50"
    assert describe(plain, create_network(plain)).input.crop_pct == 0.875
    best = describe(plain, create_network(plain), pretrained=True)
    assert best.source == name


def test_class_names_go_with_published_outputs_alone() -> None:
    names = published_class_names(create_network("resnet18"))
    assert names is not None
    assert len(names) == 1000
    assert published_class_names(create_network("resnet18", num_classes=10)) is None
    assert published_class_names(create_network("torchvision:resnet18", num_classes=10)) is None


def test_a_folder_of_timms_becomes_an_architecture_with_options(tmp_path: Path) -> None:
    """What ``timm.models.save_for_hf`` writes; the model file then needs the folder no more."""
    folder = tmp_path / "own"
    source = timm.create_model("resnet18", num_classes=3, stem_width=16, stem_type="deep")
    timm.models.save_for_hf(source, folder, {"label_names": ["a", "b", "c"]})
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"stem_width": 16, "stem_type": "deep"}
    (folder / "config.json").write_text(json.dumps(config))
    name = f"local-dir:{folder}"
    model, loaded = create_model(name, pretrained=True)
    assert loaded.origin == "published"
    assert model.description.source == "resnet18"
    assert model.description.options == {"stem_width": 16, "stem_type": "deep"}
    assert model.description.class_names == ("a", "b", "c")
    path = tmp_path / "m.safetensors"
    save_model(path, convert(model.network), model.description)
    shutil.rmtree(folder)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), gate_policy(reloaded := load_model(path).network, "open"):
        assert torch.equal(reloaded(x), source.eval()(x))


def test_no_option_of_a_model_file_reads_another_file() -> None:
    with pytest.raises(UserError, match="'checkpoint_path' of 'resnet18' would load a file"):
        create_network("resnet18", options={"checkpoint_path": "evil.pth"})


@pytest.mark.parametrize("name", ["resnet10t", "torchvision:resnet18"])
def test_facts_of_a_network_need_no_weights(name: str) -> None:
    facts = look_up(name)
    network = create_network(name)
    assert facts.params == sum(parameter.numel() for parameter in network.parameters())
    assert (facts.blocks, facts.problem) == (len(find_blocks(network).blocks), None)
