import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
import yaml
from timm.layers import EvoNorm2dB0
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert, named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.models.description import Description, PixelNetwork
from aigtool.models.files import Model, load_model
from aigtool.models.zoo import create_network
from aigtool.trace import ExecutionTrace, collect_trace
from aigtool.training.config import FinetuneConfig, Target, read_settings
from aigtool.training.judging import is_best
from aigtool.training.loop import Callbacks, finetune, measure_expected_rates
from aigtool.training.objective import MOST_EXCESS
from aigtool.training.trainer import StepReport, batch_norms
from tests.training.small import FAST, FILES, SPEC


@pytest.mark.parametrize("norms", [None, "kept", "batch"])
def test_norms_keep_their_statistics_or_learn_new_ones(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path, norms: str | None
) -> None:
    torch.manual_seed(0)
    gates = {gate.norm for _, gate in named_gates(model.network)}
    own = [module for module in model.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in own:
        norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy([*own, *gates])
    config = FinetuneConfig(epochs=1, batch_size=8, norm_statistics=norms, gate_start="given")
    finetune(model, train, val, config, out=tmp_path)
    for norm, was in zip([*own, *gates], before, strict=True):
        is_kept = norms != "batch" and norm not in gates
        assert torch.equal(norm.running_var, was.running_var) is is_kept
        assert not torch.equal(norm.weight, was.weight)
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())["options"]["norm_statistics"]
    assert said == (norms or "kept")


def test_norms_without_a_mean_train(train: ImageSet, val: ImageSet, tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=3, norm_layer=EvoNorm2dB0)
    model = Model(convert(network, input_size=SPEC.size), Description("resnet10t", 3, input=SPEC))
    config = replace(FAST, epochs=1, norm_statistics="batch")
    (row,) = finetune(model, train, val, config, out=tmp_path / "run").metrics
    assert math.isfinite(row["train_loss"])


def test_a_fresh_network_has_no_statistics_to_keep(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    for norm in batch_norms(model.network):
        norm.reset_running_stats()
    finetune(model, train, val, FinetuneConfig(epochs=1, batch_size=8), out=tmp_path)
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())["options"]["norm_statistics"]
    assert said == "batch"


def test_a_run_learns_and_leaves_every_file(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.network.state_dict())
    steps: list[StepReport] = []
    out = tmp_path / "run"
    # The target falls meanwhile: at its usual weight it would hide what is learnt.
    config = replace(FAST, noise_hold=0.3, noise_end=0.8, rate_weight=1.0)
    result = finetune(
        model,
        train,
        val,
        config,
        out=out,
        context={"data": "made"},
        callbacks=Callbacks(on_step=steps.append),
    )
    assert {path.name for path in out.iterdir()} == FILES
    assert len(steps) == 9
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]

    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2, 3]
    assert {"train_execution_rate", "val_execution_rate", "noise", "rate.layer1.0"} <= set(metrics)
    assert metrics["noise"].iloc[0] == 1.0
    assert metrics["noise"].iloc[-1] == 0.0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["options"]["lr"] == 0.01
    assert config["data"] == "made"
    assert set(config["versions"]) == {"aigtool", "python", "torch", "torchvision", "timm"}

    best = load_model(out / "best.safetensors")
    assert best.description.class_names == ("blue", "green", "red")
    assert best.description.history[-1]["epoch"] == result.epoch
    for key, value in best.network.state_dict().items():
        assert torch.equal(value, result.model.network.state_dict()[key])
    dense = load_model(out / "dense.safetensors").network.state_dict()
    assert not any(".gate." in key for key in dense)
    for key, value in dense.items():
        assert torch.equal(value, before[key])

    state = torch.load(out / "last.ckpt", weights_only=True)
    assert (state["epoch"], state["done"]) == (4, 9)


@pytest.mark.slow
def test_a_run_is_deterministic(
    gated_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    weights = []
    for name in ("a", "b"):
        model = Model(copy.deepcopy(gated_network), Description("cifar_resnet20", 3, input=SPEC))
        finetune(model, train, val, FAST, out=tmp_path / name)
        weights.append(load_model(tmp_path / name / "best.safetensors").network.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("target", ["network", pytest.param("per-layer", marks=pytest.mark.slow)])
def test_the_loss_drives_the_rate_to_its_target(
    target: str, model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    """From 87 % executed when fresh to within 15 points of 40 % in 40 steps."""
    config = FinetuneConfig(
        target_rate=0.4,
        target=target,  # type: ignore[arg-type]
        gate_start="given",
        epochs=10,
        batch_size=6,
        lr=0.0,
        gate_lr=0.1,
        rate_weight=30.0,
        noise_hold=1.0,
        noise_end=1.0,
        distill=0.0,
        clip_grad=0.0,
    )
    result = finetune(model, train, val, config, out=tmp_path / "run")
    rates = [row["train_execution_rate"] for row in result.metrics]
    assert rates[0] > 0.55, rates
    assert abs(rates[-1] - 0.4) < 0.15, rates


def test_a_second_run_takes_its_own_target(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    losses = []
    for number, rate in enumerate((0.9, 0.1)):
        config = FinetuneConfig(
            epochs=1, batch_size=8, target="per-layer", target_rate=rate, lr=0.0, gate_lr=0.0
        )
        result = finetune(copy.deepcopy(model), train, val, config, out=tmp_path / str(number))
        losses.append(result.metrics[0]["train_rate_loss"])
    # Fresh gates execute 87 %: near 0.9, far from 0.1.
    assert losses[0] < 0.1
    assert losses[1] > 0.4


def test_targets_of_their_own_are_kept(
    small_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    targets = [0.3, 1, 1, 0.9, 1, 1, 1, 1, 1]
    model = Model(
        convert(small_network, targets=targets), Description("cifar_resnet20", 3, input=SPEC)
    )
    config = FinetuneConfig(epochs=1, batch_size=8, target="per-layer")
    finetune(model, train, val, config, out=tmp_path / "run")
    blocks = load_model(tmp_path / "run" / "best.safetensors").description.gated_blocks
    assert blocks == {"layer1.0": 0.3, "layer2.0": 0.9}


def test_targets_of_their_own_leave_no_room_for_a_rate(
    small_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    targets = [0.3] * 9
    model = Model(
        convert(small_network, targets=targets), Description("cifar_resnet20", 3, input=SPEC)
    )
    config = FinetuneConfig(epochs=1, batch_size=8, target="per-layer", target_rate=0.8)
    with pytest.raises(UserError, match=r"target rate 0\.8 with target per-layer: every gate"):
        finetune(model, train, val, config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # Trained as one network, its gates have no targets any more.
    config = FinetuneConfig(epochs=1, batch_size=8, target_rate=0.8)
    finetune(model, train, val, config, out=tmp_path / "run")
    blocks = load_model(tmp_path / "run" / "best.safetensors").description.gated_blocks
    assert {*blocks.values()} == {None}


def test_every_option_is_kept_as_used(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    finetune(model, train, val, FinetuneConfig(epochs=1, batch_size=8), out=tmp_path / "run")
    options = read_settings(tmp_path / "run" / "config.yaml")["options"]
    assert options["target_rate"] == 0.6
    assert {name for name, value in options.items() if value is None} == {
        "target_flops",
        "targets",
    }


def test_a_teacher_of_another_kind_sees_images_as_it_should_and_is_kept(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    plain = replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    deeper = create_network("cifar_resnet32", num_classes=3)
    teacher = Model(deeper, Description("cifar_resnet32", 3, input=plain))
    lowest: list[Tensor] = []
    deeper.register_forward_pre_hook(lambda _, given: lowest.append(given[0].min()))
    config = FinetuneConfig(epochs=1, batch_size=8)
    finetune(model, train, val, config, out=tmp_path / "run", teacher=teacher)
    # Stages are looked for on tensors without values; the three steps are the last.
    assert min(lowest[-3:]) >= 0
    assert load_model(tmp_path / "run" / "dense.safetensors").description.source == "cifar_resnet32"
    other = Model(create_network("cifar_resnet20"), Description("cifar_resnet20", 10, input=SPEC))
    with pytest.raises(UserError, match="network to learn from has other classes"):
        finetune(model, train, val, config, out=tmp_path / "other", teacher=other)


@pytest.mark.parametrize("target", ["network", "per-layer"])
def test_a_network_without_gates_just_trains(
    target: Target, small_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    model = Model(small_network, Description("cifar_resnet20", 3, input=SPEC))
    config = FinetuneConfig(epochs=2, batch_size=8, distill=0.0, target=target)
    result = finetune(model, train, val, config, out=tmp_path / "run")
    assert result.budget is None
    assert "target_rate" not in result.model.description.history[-1]
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"dense.safetensors"}
    assert result.metrics[0]["val_execution_rate"] is None


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [([80.0, 85.0, 83.0, 82.0], 3), ([99.0, 80.0], 1), ([80.0, 79.0, 83.0], 3), ([80.0, 80.0], 2)],
)
def test_the_best_epoch_is_the_last_within_a_standard_error_of_the_most_accurate(
    accuracies: list[float], best: int
) -> None:
    rows = [{"val_top1": top1, "val_top1_stderr": 2.5} for top1 in accuracies]
    told = [epoch for epoch in range(1, len(rows) + 1) if is_best(rows[:epoch])]
    assert told[-1] == best


def test_a_run_ends_with_its_best_epoch(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies, best = [80.0, 85.0, 83.0, 82.0], 3
    answers = iter(accuracies)
    summary = ExecutionTrace.summary
    monkeypatch.setattr(
        ExecutionTrace,
        "summary",
        lambda t: summary(t) | {"top1": next(answers), "top1_stderr": 2.5},
    )
    config = FinetuneConfig(epochs=len(accuracies), batch_size=24)
    result = finetune(model, train, val, config, out=tmp_path / "run")
    assert result.epoch == best
    assert (
        load_model(tmp_path / "run" / "best.safetensors").description.history[-1]["epoch"] == best
    )


@pytest.mark.parametrize(
    "options",
    [pytest.param({"target_rate": 0.5}, marks=pytest.mark.slow), {"target_flops": 0.4}],
)
def test_a_run_ends_within_its_budget(
    options: dict[str, float], model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    """Whatever training reached, the thresholds keep the argmax decisions on val/ to it."""
    config = replace(FAST, **options)
    result = finetune(model, train, val, config, out=tmp_path / "run")
    network = PixelNetwork(result.model.network, SPEC)
    flops = count_flops(network.network, SPEC.size)
    summary = collect_trace(network, val, flops=flops, batch_size=8).summary()
    row = result.metrics[result.epoch - 1]
    for name in ("execution_rate", "flops_fraction"):
        assert summary[name] == pytest.approx(row[f"val_{name}"])
    spent = summary["flops_fraction" if "target_flops" in options else "execution_rate"]
    (asked,) = options.values()
    assert spent <= asked + 1e-9  # one gate and image less or more is 1/108 of the blocks
    assert row["val_uncalibrated"] != pytest.approx(spent)
    stored = load_model(tmp_path / "run" / "best.safetensors").network
    thresholds = [gate.threshold.item() for _, gate in named_gates(stored)]
    assert sum(map(abs, thresholds)) / 9 == pytest.approx(row["threshold_shift"])


def test_workers_change_nothing(
    gated_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    moving = replace(train, transform=transforms.Compose([transforms.RandomCrop(32, 4), to_tensor]))
    states = []
    for workers in (0, 2):
        model = Model(copy.deepcopy(gated_network), Description("cifar_resnet20", 3, input=SPEC))
        config = replace(FAST, epochs=1, workers=workers)
        result = finetune(model, moving, val, config, out=tmp_path / str(workers))
        states.append(result.model.network.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"amp_dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"amp_dtype": "float16", "clip_grad": 1.0}, marks=pytest.mark.slow),
        pytest.param({"mixup": 0.2, "smoothing": 0.1}, marks=pytest.mark.slow),
        {"cutmix": 1.0, "distill": 0.0},
        {"opt": "adamw", "lr": 1e-3, "gate_lr": 1e-2, "warmup_epochs": 1},
        pytest.param(
            {"gate_temperature": 2.0, "gate_temperature_end": 0.5}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_each_part_of_the_recipe_still_learns(
    options: dict[str, Any], model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    config = replace(FAST, information=0.0, rate_weight=1.0, **options)
    result = finetune(model, train, val, config, out=tmp_path / "run")
    losses = [row["train_loss"] for row in result.metrics]
    assert losses[-1] < losses[0], losses


def test_averaged_weights_are_what_is_judged_and_kept(
    gated_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    """The mean that timm's ModelEmaV3 keeps, worked out from the weights after each step."""
    kept = {}
    for decay in (0.0, 0.5):
        model = Model(copy.deepcopy(gated_network), Description("cifar_resnet20", 3, input=SPEC))
        config = replace(FAST, epochs=1, batch_size=8, model_ema_decay=decay)
        weights = [model.network.linear.weight.detach().clone()]
        live = model.network

        def note(_: StepReport, live: nn.Module = live, weights: list[Any] = weights) -> None:
            weights.append(live.linear.weight.detach().clone())

        finetune(
            model, train, val, config, out=tmp_path / str(decay), callbacks=Callbacks(on_step=note)
        )
        kept[decay] = load_model(tmp_path / str(decay) / "best.safetensors").network.linear.weight
    assert torch.equal(kept[0.0], weights[-1])
    average, decays = weights[0], [0.0, 1 - 2 ** (-2 / 3), 0.5]
    for decay, weight in zip(decays, weights[1:], strict=True):
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(kept[0.5], average)
    assert not torch.equal(kept[0.5], kept[0.0])


def test_the_baseline_is_the_dense_network_again(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    config = replace(FAST, baseline="stochastic-depth", epochs=2)
    result = finetune(model, train, val, config, out=tmp_path / "run")
    saved = load_model(tmp_path / "run" / "best.safetensors")
    dense = load_model(tmp_path / "run" / "dense.safetensors")
    assert not saved.description.gated_blocks
    assert list(saved.network.state_dict()) == list(dense.network.state_dict())
    moved = [
        name
        for name, value in saved.network.state_dict().items()
        if not torch.equal(value, dense.network.state_dict()[name])
    ]
    assert any(name.startswith("layer2") for name in moved)
    assert result.metrics[-1]["val_execution_rate"] is None
    assert result.metrics[-1]["val_flops_fraction"] == 1.0
    with pytest.raises(UserError, match="expected a network with gates"):
        finetune(saved, train, val, config, out=tmp_path / "again")


def test_targets_can_be_given_when_training(
    small_network: nn.Module, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    model = Model(
        convert(small_network, ungated="first:6"), Description("cifar_resnet20", 3, input=SPEC)
    )
    config = FinetuneConfig(epochs=1, batch_size=8, targets="0.9,0.5,1")
    finetune(model, train, val, config, out=tmp_path / "run")
    blocks = load_model(tmp_path / "run" / "best.safetensors").description.gated_blocks
    assert blocks == {"layer3.0": 0.9, "layer3.1": 0.5, "layer3.2": 1.0}


def test_gates_alone_are_trained_where_asked(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.network.state_dict())
    config = replace(FAST, train="gates", norm_statistics=None, epochs=1)
    after = finetune(model, train, val, config, out=tmp_path / "run").model.network.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if ".gate." not in key} <= same
    assert not any(key.endswith(".gate.fc2.weight") for key in same)
    assert all(weight.requires_grad for weight in model.network.parameters())


def test_thresholds_that_a_network_comes_with_are_where_training_starts(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    """Gates that argmax closes are closed in training too, by a logit of the same sign."""
    gates = dict(named_gates(model.network))
    for gate in gates.values():
        gate.threshold.fill_(5.0)
    steps: list[StepReport] = []
    config = replace(FAST, epochs=1, lr=1e-9, gate_lr=1e-9, noise_hold=0.0, noise_end=0.0)
    finetune(
        model, train, val, config, out=tmp_path / "run", callbacks=Callbacks(on_step=steps.append)
    )
    assert steps[0].execution_rate == 0
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["network"]
    for name in gates:
        torch.testing.assert_close(state[f"{name}.gate.fc2.bias"], torch.tensor([0.1, -3.0]))


def test_what_validation_executes_more_than_training_is_taken_off_the_target(
    model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    config = replace(FAST, epochs=1, target_rate=0.6)
    (row,) = finetune(model, train, val, config, out=tmp_path / "run").metrics
    excess = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["objective"]["excess"]
    expected = row["val_uncalibrated"] - row["train_argmax_rate"]
    # The running rate, over a few images, is not the epoch's mean.
    assert excess.item() == pytest.approx(min(max(expected, -MOST_EXCESS), MOST_EXCESS), abs=0.03)


@pytest.mark.parametrize("options", [{"opt": "no_such"}, {"sched": "no_such"}])
def test_unknown_optimisers_and_schedules_are_told(
    options: dict[str, str], model: Model, train: ImageSet, val: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="names that timm knows"):
        finetune(model, train, val, FinetuneConfig(**options), out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_expected_rates_are_the_mean_probabilities(model: Model) -> None:
    network = PixelNetwork(model.network, SPEC).eval()
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight)
    pixels = torch.rand(6, 3, 32, 32)
    torch.manual_seed(3)
    measure_expected_rates(network, [(pixels, torch.zeros(6))])
    first = dict(named_gates(model.network))["layer1.0"]
    with torch.no_grad(), recorded_decisions(network) as decisions:
        network(pixels)
        # The first gate sees the same whatever the others draw.
        expected = decisions["network.layer1.0"].logit.sigmoid().mean()
    torch.testing.assert_close(first.expected_rate, expected)
