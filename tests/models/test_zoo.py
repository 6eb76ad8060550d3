import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from aigtool.errors import UserError
from aigtool.models.zoo import (
    count_classes,
    create_network,
    list_networks,
    load_weights,
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
        ("pytorch:resnet50", "torchvision:resnet50"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        create_network(name)


def test_published_weights_without_a_network_end_in_one_line() -> None:
    with pytest.raises(UserError, match="could not be built with its published weights"):
        create_network("resnet18.a1_in1k", pretrained=True)


def wrap_state(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}


@pytest.mark.parametrize("form", ["plain.pth", "wrapped.th", "model.pt", "plain.safetensors"])
def test_every_form_of_checkpoint_loads(form: str, tmp_path: Path) -> None:
    source, target = create_network("cifar_resnet20"), create_network("cifar_resnet20")
    path = tmp_path / form
    state = source.state_dict()
    if form.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        wrapped = {
            "plain.pth": state,
            "wrapped.th": wrap_state(state),
            "model.pt": {"model": state},
        }
        torch.save(wrapped[form], path)
    load_weights(target, path)
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key])


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "no such file"),
        ("empty.pth", b"", "is empty"),
        ("text.pth", b"hello, this is no checkpoint", "not a checkpoint"),
        ("prose.pth", b"a text file", "not a checkpoint"),
        ("table.pth", b"epoch,loss\n1,0.5\n", "not a checkpoint"),
        ("text.safetensors", b"hello, this is no checkpoint", "not a checkpoint"),
        ("code.pth", pickle.dumps(Malicious()), "could run code"),
        ("code.pt", Malicious(), "could run code"),
        ("list.pth", [1, 2], "no state dict"),
        ("nested.pth", {"state_dict": {"a": 1}}, "no state dict"),
    ],
)
def test_what_is_no_checkpoint_is_told_and_runs_nothing(
    name: str, content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_weights(create_network("cifar_resnet20"), path)
    assert not (tmp_path / "owned").exists()


def test_a_cut_checkpoint_is_told(tmp_path: Path) -> None:
    network = create_network("cifar_resnet20")
    path = tmp_path / "cut.pth"
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cut short"):
        load_weights(network, path)


def test_another_architecture_is_told_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "r32.pth"
    torch.save(create_network("cifar_resnet32").state_dict(), path)
    with pytest.raises(UserError, match=r"unexpected layer1\.3\.conv1\.weight"):
        load_weights(create_network("cifar_resnet20"), path)
    torch.save(create_network("cifar_resnet20", num_classes=7).state_dict(), path)
    with pytest.raises(UserError, match=r"linear\.weight is \(7, 64\), expected \(10, 64\)"):
        load_weights(create_network("cifar_resnet20"), path)
