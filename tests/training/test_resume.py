"""What a run that stops leaves behind, and going on from it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert
from aigtool.data.images import ImageSet
from aigtool.errors import NonFiniteLossError, UserError
from aigtool.models.description import Description
from aigtool.models.files import Model, load_model
from aigtool.models.zoo import create_network
from aigtool.training.config import FinetuneConfig, read_settings
from aigtool.training.loop import Callbacks, FinetuneResult, finetune
from aigtool.training.trainer import StepReport
from tests.training.small import FAST, SPEC


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (4, {"gate_start": "pattern"}),
        pytest.param(6, {}, marks=pytest.mark.slow),
        pytest.param(3, {"opt": "adamw", "lr": 0.001}, marks=pytest.mark.slow),
        pytest.param(3, {"train": "gates", "norm_statistics": None}, marks=pytest.mark.slow),
        pytest.param(3, {"baseline": "stochastic-depth", "band": 0.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_that_was_stopped_ends_as_one_that_never_was(
    stop: int,
    options: dict[str, Any],
    gated_network: nn.Module,
    train: ImageSet,
    val: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of an epoch, or at its end, of 2 with 4 steps each."""
    monkeypatch.setattr("aigtool.training.trainer.SAVE_SECONDS", -1.0)
    config = replace(
        FAST,
        epochs=2,
        batch_size=6,
        aug_repeats=2,
        grad_accum_steps=2,
        clip_grad=1.0,
        band=1.0,
        model_ema_decay=0.9,
        mixup=0.2,
        cutmix=0.2,
    )
    config = replace(config, **options)
    teacher = create_network("cifar_resnet20", num_classes=3)
    moving = replace(train, transform=transforms.Compose([transforms.RandomCrop(32, 4), to_tensor]))

    def run(name: str, **options: Any) -> FinetuneResult:
        model = Model(copy.deepcopy(gated_network), Description("cifar_resnet20", 3, input=SPEC))
        taught = Model(copy.deepcopy(teacher), Description("cifar_resnet20", 3, input=SPEC))
        return finetune(model, moving, val, config, out=tmp_path / name, teacher=taught, **options)

    def stopping(report: StepReport) -> None:
        if (report.epoch - 1) * report.steps + report.step == stop + 1:
            raise StoppedError

    whole = run("whole")
    with pytest.raises(StoppedError):
        run("stopped", callbacks=Callbacks(on_step=stopping))
    torch.manual_seed(1234)
    resumed = run("stopped", resume=True)
    for name in ("best.safetensors", "dense.safetensors"):
        one, other = (load_model(tmp_path / run / name) for run in ("whole", "stopped"))
        assert one.description == other.description
        state = other.network.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in one.network.state_dict().items())
    timed = ("train_images_per_second",)
    for row, other in zip(whole.metrics, resumed.metrics, strict=True):
        assert {k: v for k, v in row.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
    again = run("stopped", resume=True)
    for key, value in whole.model.network.state_dict().items():
        assert torch.equal(value, again.model.network.state_dict()[key])


def test_a_run_is_resumed_with_its_own_options_only(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no run to resume"):
        finetune(model, train, val, FAST, out=out, resume=True)
    finetune(copy.deepcopy(model), train, val, FAST, out=out)
    other = replace(FAST, lr=0.5)
    with pytest.raises(UserError, match=r"started with lr 0\.01, not 0\.5"):
        finetune(copy.deepcopy(model), train, val, other, out=out, resume=True)
    finetune(copy.deepcopy(model), train, val, replace(FAST, workers=1), out=out, resume=True)
    (out / "best.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match=r"has lost its best\.safetensors"):
        finetune(copy.deepcopy(model), train, val, FAST, out=out, resume=True)
    (out / "last.ckpt").write_bytes(b"no state")
    with pytest.raises(UserError, match="no whole state"):
        finetune(model, train, val, FAST, out=out, resume=True)


def test_a_run_is_taken_up_by_the_network_that_it_changed(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    """What is learnt from is the network as it was when the run began, and so are defaults."""
    config = FinetuneConfig(epochs=2, batch_size=8, aug_repeats=1, distill=0.9)
    whole = finetune(copy.deepcopy(model), train, val, config, out=tmp_path / "whole")

    def stopping(report: StepReport) -> None:
        if report.epoch == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        finetune(
            model, train, val, config, out=tmp_path / "run", callbacks=Callbacks(on_step=stopping)
        )
    resumed = finetune(model, train, val, config, out=tmp_path / "run", resume=True)
    state = resumed.model.network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.model.network.state_dict().items())


def test_a_run_is_not_taken_up_by_another_network(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    config = replace(FAST, epochs=1)
    finetune(model, train, val, config, out=tmp_path / "run")
    deeper = convert(create_network("cifar_resnet32", num_classes=3))
    other = Model(deeper, Description("cifar_resnet32", 3, input=SPEC))
    with pytest.raises(UserError, match="is of another network or version of aigtool: resume"):
        finetune(other, train, val, config, out=tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_is_good(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step that spoils the weights is not saved, however often steps are."""
    monkeypatch.setattr("aigtool.training.trainer.SAVE_SECONDS", -1.0)
    config = replace(FAST, lr=3e38)
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1"):
        finetune(model, train, val, config, out=tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert kept["done"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["network"].values())


def test_a_network_that_is_not_finite_is_told(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.network.linear.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1"):
        finetune(model, train, val, FAST, out=tmp_path / "run")


def test_weights_that_are_not_finite_after_the_last_step_are_no_result(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        epochs=1, batch_size=len(train), aug_repeats=1, lr=3e38, gate_lr=0.1, clip_grad=0.0
    )
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1"):
        finetune(model, train, val, config, out=tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("text", ["", "a: 1", "options: 1", "{", "options: [", b"\xff\xfe\x00"])
def test_a_config_that_is_not_of_a_run_is_told(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="aigtool finetune"):
        read_settings(file)
