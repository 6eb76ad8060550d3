import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from aigtool.errors import UserError
from aigtool.models.weights import classifier_name, load_weights
from aigtool.models.zoo import create_network

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged(state: State) -> dict[str, Any]:
    """As torch's ``AveragedModel`` and torchvision's training script save it."""
    return {"n_averaged": torch.tensor(7)} | prefixed("module.", state)


FORMS = {
    "plain.pth": lambda state: state,
    "plain.pt": lambda state: state,
    "plain.bin": lambda state: state,
    "ours.th": lambda state: {"state_dict": prefixed("module.", state), "best_prec1": 9.0},
    "compiled.pt": lambda state: {"model": prefixed("_orig_mod.", state)},
    "both.pt": lambda state: {"model": prefixed("module._orig_mod.", state), "epoch": 3},
    "timm.pth.tar": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
    "lightning.ckpt": lambda state: {"state_dict": prefixed("model.", state)},
    "turned.pt": lambda state: prefixed("_orig_mod.module.", state),
    "only_ema.pth": lambda state: {"model_ema": averaged(state)},
    "ema.pth": lambda state: {"state_dict_ema": state},
}


@pytest.fixture
def source() -> nn.Module:
    return create_network("cifar_resnet20")


def check_equal(network: nn.Module, state: State, but: str = "nothing") -> None:
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]) or key.startswith(but)


@pytest.mark.parametrize("form", [*FORMS, "plain.safetensors", "compiled.safetensors"])
def test_every_form_of_checkpoint_loads(form: str, source: nn.Module, tmp_path: Path) -> None:
    state = source.state_dict()
    path = tmp_path / form
    if form.endswith(".safetensors"):
        prefix = "_orig_mod." if form.startswith("compiled") else ""
        safetensors.torch.save_file(prefixed(prefix, state), path)
    else:
        torch.save(FORMS[form](state), path)
    target = create_network("cifar_resnet20")
    loaded = load_weights(target, path)
    check_equal(target, state)
    assert (loaded.origin, loaded.other) == (form, None)
    assert all("the only ones in it" in remark for remark in loaded.remarks())
    assert len(loaded.remarks()) == ("ema" in form)


def test_the_weights_of_an_averaged_model_are_averaged(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "swa.pth"
    torch.save(averaged(source.state_dict()), path)
    for use_ema in (False, True):
        target = create_network("cifar_resnet20")
        load_weights(target, path, use_ema=use_ema)
        check_equal(target, source.state_dict())


def test_a_prefix_that_the_network_has_too_stays(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pth"
    for prefix in ("net.", "module.net.", ""):
        torch.save(prefixed(prefix, source.state_dict()), path)
        target = nn.Sequential()
        target.add_module("net", create_network("cifar_resnet20"))
        if not prefix:
            with pytest.raises(UserError, match=r"missing: net\.conv1\.weight"):
                load_weights(target, path)
            continue
        load_weights(target, path)
        check_equal(target.net, source.state_dict())


def test_numbers_that_are_not_finite_are_told(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "astray.pth"
    with torch.no_grad():
        source.get_parameter("layer2.0.conv1.weight")[0, 0] = torch.nan
    torch.save(source.state_dict(), path)
    with pytest.raises(UserError, match=r"NaN or infinity: layer2\.0\.conv1\.weight;"):
        load_weights(create_network("cifar_resnet20"), path)


def test_an_old_file_without_counters_loads(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "old.th"
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    target = create_network("cifar_resnet20")
    load_weights(target, path)
    assert torch.equal(target.linear.weight, source.linear.weight)


@pytest.mark.parametrize("use_ema", [False, True])
def test_where_there_are_averaged_weights_too_the_user_chooses(
    use_ema: bool, source: nn.Module, tmp_path: Path
) -> None:
    plain, ema = source.state_dict(), create_network("cifar_resnet20").state_dict()
    path = tmp_path / "both.pth"
    torch.save({"state_dict": plain, "state_dict_ema": ema}, path)
    target = create_network("cifar_resnet20")
    loaded = load_weights(target, path, use_ema=use_ema)
    check_equal(target, ema if use_ema else plain)
    assert loaded.entry == ("state_dict_ema" if use_ema else "state_dict")
    assert "--use-ema" in loaded.remarks()[0]
    torch.save(plain, path)
    if use_ema:
        with pytest.raises(UserError, match="no averaged weights"):
            load_weights(target, path, use_ema=True)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnetv2_18", "torchvision:resnet18"])
def test_a_classifier_of_another_size_starts_anew_where_asked(name: str, tmp_path: Path) -> None:
    source = create_network(name, num_classes=7)
    path = tmp_path / "seven.pth"
    torch.save(source.state_dict(), path)
    target = create_network(name, num_classes=5)
    with pytest.raises(UserError, match="7 classes, the network for 5: pass --num-classes 7"):
        load_weights(target, path)
    head = classifier_name(target)
    fresh = target.get_submodule(head).weight.clone()
    loaded = load_weights(target, path, new_classes=True)
    check_equal(target, source.state_dict(), but=f"{head}.")
    assert torch.equal(target.get_submodule(head).weight, fresh)
    assert loaded.remarks() == [f"the classifier {head!r} is new and untrained"]
    same = create_network(name, num_classes=7)
    assert load_weights(same, path, new_classes=True).fresh is None
    check_equal(same, source.state_dict())


def test_weights_without_a_classifier_load_where_it_is_new(
    source: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "features.pth"
    torch.save({k: v for k, v in source.state_dict().items() if "linear" not in k}, path)
    with pytest.raises(UserError, match=r"no classifier \(linear\.weight is missing\)"):
        load_weights(create_network("cifar_resnet20"), path)
    assert load_weights(create_network("cifar_resnet20"), path, new_classes=True).fresh == "linear"


def test_the_classifier_is_the_last_linear_layer_where_no_one_tells() -> None:
    assert classifier_name(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == "2"
    with pytest.raises(UserError, match="no linear layer"):
        classifier_name(nn.Sequential(nn.ReLU()))


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
    with pytest.raises(
        UserError, match=r"unexpected: layer1\.3\.conv1\.weight, .* and \d+ more; choose"
    ):
        load_weights(create_network("cifar_resnet20"), path)
    torch.save(create_network("cifar_resnet20", num_classes=7).state_dict(), path)
    with pytest.raises(UserError, match="7 classes, the network for 10"):
        load_weights(create_network("cifar_resnet20"), path)
