import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from aigtool.conversion import convert, named_gates
from aigtool.errors import UserError
from aigtool.models.description import Description, InputSpec, PixelNetwork
from aigtool.models.files import Model, load_model, load_reference, save_model
from aigtool.models.override import InputOverride
from aigtool.models.zoo import create_network
from aigtool.output import write_json
from aigtool.training.run_folder import RunFolder

DESCRIPTION = Description(
    source="cifar_resnet20",
    num_classes=3,
    class_names=("a", "b", "c"),
    input=InputSpec(size=(3, 32, 32), crop_pct=1.0),
    policy="sampled",
    history=({"step": "convert", "weights": "x.pth"},),
)


def test_a_model_file_round_trips(small_network: nn.Module, tmp_path: Path) -> None:
    targets = [0.5, 1, 0.7, 1, 1, 1, 1, 1, 0.2]
    network = convert(small_network, width=5, targets=targets)
    for _, gate in named_gates(network):
        gate.threshold.fill_(0.25)
    path = tmp_path / "model.safetensors"
    PixelNetwork(network, DESCRIPTION.input)  # lays the weights out channels-last
    save_model(path, network, DESCRIPTION)
    loaded = load_model(path)
    assert replace(loaded.description, gated_blocks={}, gate_width=16) == DESCRIPTION
    assert loaded.description.gate_width == 5
    assert loaded.description.gated_blocks == {"layer1.0": 0.5, "layer1.2": 0.7, "layer3.2": 0.2}
    for (name, gate), (other_name, other) in zip(
        named_gates(network), named_gates(loaded.network), strict=True
    ):
        assert (other_name, other.target, other.width) == (name, gate.target, 5)
        assert (other.threshold.item(), other.policy) == (0.25, "sampled")
    for key, value in loaded.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
    assert not loaded.network.training


def test_the_header_is_readable_without_us(gated_network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, gated_network, DESCRIPTION)
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["aigtool"])
    assert about["format_version"] == 1
    assert about["source"] == "cifar_resnet20"
    assert about["input"]["mean"] == [0.485, 0.456, 0.406]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = create_network("cifar_resnet20").layer1
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.fc(self.body(x).mean((2, 3))))


def test_a_network_of_the_users_own_class(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    network = convert(Own())
    save_model(path, network, Description("", 3))
    with pytest.raises(UserError, match="class of its own"):
        load_model(path)
    loaded = load_model(path, Own()).network
    assert all(
        torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items()
    )


def rewrite(path: Path, about: str | None) -> None:
    metadata = {"format": "pt"} | ({} if about is None else {"aigtool": about})
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata)


def described(**changes: object) -> str:
    return json.dumps(DESCRIPTION.to_json() | changes)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "no description of a network"),
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ("[]", "cannot be read"),
        (described(format_version=99), "format 99"),
        (described(surprise=1), "cannot be read"),
        (described(num_classes="many"), "cannot be read"),
        (described(gated_blocks=["layer1.0"]), "cannot be read"),
        (described(policy="always"), "cannot be read"),
        (described(input={"size": [3, "a", 1]}), "cannot be read"),
        (described(), "does not fit its network"),
        (described(source="resnet999"), "no network is called"),
    ],
)
def test_what_is_no_model_file_is_told(about: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rewrite(path, about)
    with pytest.raises(UserError, match=message):
        load_model(path)


def test_missing_and_cut_files_are_told(small_network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(UserError, match=r"it is a run folder; expected .*best\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_model(path)
    save_model(path, small_network, DESCRIPTION)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"is no \.safetensors file"):
        load_model(path)


def test_a_file_that_does_not_fit_is_told(small_network: nn.Module, tmp_path: Path) -> None:
    """Neither writing by Python nor that by safetensors or PyTorch leaves a part of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            save_model(tmp_path / "a.safetensors", small_network, DESCRIPTION)
        with pytest.raises(UserError, match="cannot be written: File too large"):
            write_json(tmp_path / "a.json", "a" * 2000)
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written: File too large"):
            RunFolder(tmp_path).write_state({"weights": torch.zeros(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_the_reference_is_dense_where_there_is_one(
    small_network: nn.Module, tmp_path: Path
) -> None:
    gated_path, dense_path = tmp_path / "best.safetensors", tmp_path / "dense.safetensors"
    save_model(tmp_path / "other.safetensors", small_network, DESCRIPTION)
    save_model(gated_path, convert(small_network), DESCRIPTION)
    model = load_model(gated_path)
    assert load_reference(model, gated_path) == ("open", model)
    save_model(dense_path, create_network("cifar_resnet20", num_classes=3), DESCRIPTION)
    kind, dense = load_reference(model, gated_path)
    assert (kind, dense.description.gated_blocks) == ("dense", {})
    assert load_reference(dense, dense_path) == ("dense", dense)
    kind, dense = load_reference(model, gated_path, tmp_path / "other.safetensors")
    assert kind == "dense"
    with pytest.raises(UserError, match="no such file"):
        load_reference(model, gated_path, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="has gates"):
        load_reference(model, gated_path, gated_path)
    other = tmp_path / "other.st"
    save_model(other, create_network("cifar_resnet20"), replace(DESCRIPTION, num_classes=10))
    with pytest.raises(UserError, match="other classes"):
        load_reference(model, gated_path, other)
    spec = InputSpec(size=(3, 64, 64))
    dense_network = create_network("cifar_resnet20", num_classes=3)
    save_model(other, dense_network, replace(DESCRIPTION, input=spec))
    with pytest.raises(UserError, match="takes images of"):
        load_reference(model, gated_path, other)
    by = InputOverride(img_size=16)
    _, dense = load_reference(model.overridden(by), gated_path, other, by)
    assert dense.description.input.size == (3, 16, 16)


def test_what_is_not_given_stays() -> None:
    model = Model(nn.Identity(), DESCRIPTION)
    assert model.overridden(InputOverride()) == model
    other = model.overridden(InputOverride(crop_pct=0.5, std=(0.1, 0.2, 0.3)))
    assert (other.network, model.description) == (model.network, DESCRIPTION)
    assert other.description == replace(
        DESCRIPTION, input=replace(DESCRIPTION.input, crop_pct=0.5, std=(0.1, 0.2, 0.3))
    )
    with pytest.raises(UserError, match="interpolation 'cubic': expected one of bilinear"):
        InputOverride(interpolation="cubic")  # type: ignore[arg-type]


def test_a_failed_write_leaves_the_old_file(
    small_network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, small_network, DESCRIPTION)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(path, small_network, DESCRIPTION)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
