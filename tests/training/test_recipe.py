"""Each part of the recipe does what it is named for."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import named_gates
from aigtool.data.images import open_images
from aigtool.errors import UserError
from aigtool.models.description import Description, InputSpec
from aigtool.models.files import Model
from aigtool.training.config import FinetuneConfig
from aigtool.training.loop import Callbacks, FinetuneResult, finetune
from aigtool.training.mixing import make_mixing
from aigtool.training.optimization import make_optimizer, settle_gates
from tests.marks import but_slow

PLAIN = FinetuneConfig(
    gate_start="given",
    aug_repeats=1,
    epochs=1,
    batch_size=8,
    lr=0.01,
    gate_lr=0.1,
    norm_statistics="batch",
    weight_decay=0.0,
)


class Runs:
    """Runs of one small network on 24 images of three colours."""

    def __init__(self, network: nn.Module, folder: Path, out: Path) -> None:
        self.state = {name: value.clone() for name, value in network.state_dict().items()}
        self.network = network
        self.out = out
        self.train, self.val = (
            open_images(str(folder), split, to_tensor) for split in ("train", "val")
        )
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, config: FinetuneConfig) -> FinetuneResult:
        """Fine-tune it anew; ``weights`` are those before and after each step."""
        self.network.load_state_dict(self.state)
        self.weights = [self._copy()]
        description = Description("cifar_resnet20", 3, input=InputSpec(size=(3, 32, 32)))
        return finetune(
            Model(self.network, description),
            self.train,
            self.val,
            config,
            out=self.out,
            callbacks=Callbacks(on_step=lambda _: self.weights.append(self._copy())),
        )

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def moved(self, step: int) -> float:
        """How far the step moved the weight that it moved most."""
        before, after = self.weights[step - 1 : step + 1]
        return max((after[name] - before[name]).abs().max().item() for name in before)


@pytest.fixture
def gated(gated_network: nn.Module, image_folder: Path, tmp_path: Path) -> Runs:
    return Runs(gated_network, image_folder, tmp_path / "run")


@pytest.fixture
def dense(small_network: nn.Module, image_folder: Path, tmp_path: Path) -> Runs:
    return Runs(small_network, image_folder, tmp_path / "run")


def test_gradients_are_clipped_to_a_norm(gated: Runs) -> None:
    """SGD's first step, with Nesterov's momentum, is 1.9 learning rates times the gradient."""
    gated(replace(PLAIN, clip_grad=1e-3, gate_lr=0.01, batch_size=24))
    before, after = gated.weights
    norm = sum((after[name] - before[name]).square().sum() for name in before) ** 0.5
    assert norm == pytest.approx(1.9 * 0.01 * 1e-3, rel=1e-2)


def test_a_warm_up_starts_from_no_step_at_all(gated: Runs) -> None:
    """Three steps over which the rates rise from 0 by a third each; then they are whole."""
    rates: list[float] = []
    config = replace(PLAIN, epochs=2, warmup_epochs=1, sched="constant")
    optimizer, schedule = make_optimizer(gated.network, config, 3)
    for step in range(5):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[-1]["lr"])
    assert rates == pytest.approx([0.0, 0.1 / 3, 0.2 / 3, 0.1, 0.1])
    gated(config)
    assert gated.moved(1) == 0.0
    assert gated.moved(2) > 0.0


@pytest.mark.parametrize(
    ("sched", "rates"),
    [
        ("step", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("multistep", [1, 1, 1, 0.1, 0.1, 0.01]),
        ("cosine", [1, 0.9330, 0.75, 0.5, 0.25, 0.0670]),
        ("poly", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_schedules_fall_within_the_run(gated: Runs, sched: str, rates: list[float]) -> None:
    config = replace(PLAIN, epochs=6, sched=sched, lr=1.0)
    optimizer, schedule = make_optimizer(gated.network, config, 10)
    given = []
    for epoch in range(6):
        schedule.step_update(10 * epoch)
        given.append(optimizer.param_groups[0]["lr"])
    assert given == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize(
    ("gate_lr", "rates"),
    [(1.0, [1, 0.55, 0.1, 0.1]), (0.05, [0.05] * 4), (0.0, [0.0] * 4)],
    ids=["falls", "slower than the network", "still"],
)
def test_gates_settle_at_the_learning_rate_of_the_network(
    gated: Runs, gate_lr: float, rates: list[float]
) -> None:
    """Half a cosine from theirs to the network's, on top of the schedule; never a rise."""
    config = replace(PLAIN, lr=0.1, gate_lr=gate_lr, gate_settle=0.5, sched="constant")
    optimizer, schedule = make_optimizer(gated.network, config, 100)
    given = []
    for step in (0, 25, 50, 75):
        schedule.step_update(step)
        settle_gates(optimizer, config, step / 100)
        given.append([group["lr"] for group in optimizer.param_groups])
    assert [row[-1] for row in given] == pytest.approx(rates)
    assert all(row[:-1] == [0.1, 0.1] for row in given)


def test_settled_gates_keep_their_norms_statistics(gated: Runs) -> None:
    """Of twelve steps the first six, from 0 to 5/11 of the run; the gates learn in all."""
    norm = next(gate for _, gate in named_gates(gated.network)).norm
    counts: list[int] = []
    run = replace(PLAIN, epochs=4, gate_settle=0.5)
    hook = norm.register_forward_hook(lambda norm, *_: counts.append(int(norm.num_batches_tracked)))
    gated(run)
    hook.remove()
    assert max(counts) == counts[-1] == 6
    steps = [weights["layer1.0.gate.fc1.weight"] for weights in gated.weights]
    assert len(steps) == 13
    assert not any(torch.equal(*pair) for pair in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("options", "share"), [({}, 0.25), ({"train": "gates"}, 1.0), ({"gate_settle": 0.2}, 0.2)]
)
def test_gates_trained_alone_have_no_network_to_settle_for(
    options: dict[str, Any], share: float
) -> None:
    config = FinetuneConfig(**options).completed(can_distill=True, is_trained=True)
    assert config.gate_settle == share


@pytest.mark.parametrize(
    ("opt", "lr"), [("sgd", 0.02), ("nesterov", 0.02), ("adamw", 0.0006), ("nadam", 0.0006)]
)
def test_an_optimiser_has_a_learning_rate_of_its_kind(opt: str, lr: float) -> None:
    config = FinetuneConfig(opt=opt, batch_size=128).completed(can_distill=True, is_trained=True)
    assert config.lr == pytest.approx(lr)
    assert config.gate_lr == pytest.approx(25 * lr)


def test_repeated_images_are_as_many_more_looks_an_epoch(gated: Runs) -> None:
    """24 images, 8 a step: each once in 3 steps, or 4 of them twice in a step of 6."""
    gated(replace(PLAIN, aug_repeats=1))
    assert len(gated.weights) == 4
    gated(replace(PLAIN, aug_repeats=2))
    assert len(gated.weights) == 7


@pytest.mark.parametrize("images", [16, pytest.param(24, marks=pytest.mark.slow)])
def test_accumulated_minibatches_are_one_large_one(dense: Runs, images: int) -> None:
    """Two minibatches or one: apart by less than a hundredth of what a step moves.

    Of 24 images, in steps of 16 the second has one minibatch alone, of 8.

    Sums in another order differ by 1e-5 after two steps, as kernels of one machine did; steps of
    a sum instead of a mean would differ by as much as they move.
    """
    kept = replace(PLAIN, norm_statistics="kept", epochs=2, lr=1e-3, distill=0.5)
    dense(replace(kept, batch_size=images))
    whole = dense.weights
    moved = dense.moved(1)
    dense(replace(kept, batch_size=images // 2, grad_accum_steps=2))
    assert len(dense.weights) == len(whole) == (3 if images == 24 else 5)
    for name, value in whole[-1].items():
        torch.testing.assert_close(dense.weights[-1][name], value, rtol=0, atol=moved / 100)


@pytest.mark.parametrize("dtype", but_slow(["float32", "bfloat16", "float16"], ["float16"]))
def test_autocast_computes_in_what_was_asked_for(gated: Runs, dtype: str) -> None:
    found: set[torch.dtype] = set()
    hook = gated.network.layer1[0].conv1.register_forward_hook(
        lambda module, _, out: found.add(out.dtype) if module.training else None
    )
    gated(replace(PLAIN, amp_dtype=dtype))  # type: ignore[arg-type]
    hook.remove()
    assert found == {getattr(torch, dtype)}


def test_gates_end_without_noise_at_the_last_temperature(gated: Runs) -> None:
    config = replace(PLAIN, epochs=3, gate_temperature=4.0, gate_temperature_end=0.5, noise_end=0.7)
    result = gated(config)
    for _, gate in named_gates(gated.network):
        assert gate.temperature.item() == pytest.approx(0.5)
    first, last = result.metrics[0], result.metrics[-1]
    assert first["train_execution_rate"] != first["train_argmax_rate"]
    assert last["noise"] == 0.0
    assert last["train_execution_rate"] == last["train_argmax_rate"]


@pytest.mark.parametrize("options", [(1.0, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_labels_are_mixed_as_pixels_are(options: tuple[float, float]) -> None:
    """Of images of one colour each, a mixed one's mean is that of its classes in their shares."""
    torch.manual_seed(0)
    labels = torch.arange(6) % 3
    pixels = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    mix = make_mixing(*options, classes=3)
    parted = 0
    for _ in range(20):
        mixed, shares = mix(pixels, labels)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(3.0))
        parted += int((shares.max(1).values < 1).sum())
    assert parted > 20


def test_smoothed_labels_ask_for_less_certainty(dense: Runs) -> None:
    """The first loss of the same network, against torch's own."""
    losses = {}
    for smoothing in (0.0, 0.3):
        config = replace(PLAIN, batch_size=24, smoothing=smoothing, distill=0.0)
        losses[smoothing] = dense(config).metrics[0]["train_loss"]
    uniform = losses[0.3] - 0.7 * losses[0.0]
    assert uniform > 0.3 * torch.tensor(3.0).log().item()
    assert losses[0.3] != losses[0.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_is_the_same_run(gated: Runs) -> None:
    """Without noise, of which a compiled network draws another sample; float32 sums in another
    order, which three steps of learning let grow to a hundredth."""
    config = replace(PLAIN, epochs=3, batch_size=24, lr=1e-3, gate_lr=1e-2, noise_hold=0.0)
    config = replace(config, noise_end=0.0, rate_weight=1.0, information=0.0)
    losses = [
        [row["train_loss"] for row in gated(replace(config, compile=compiled)).metrics]
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[0][-1] < 0.99 * losses[0][0]


@pytest.mark.parametrize("backend", but_slow(["eager", "inductor"], ["inductor"]))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_follows_the_noise(
    backend: str, gated: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    result = gated(replace(PLAIN, epochs=3, noise_hold=0.4, noise_end=0.5, compile=True))
    parted = [row["train_execution_rate"] != row["train_argmax_rate"] for row in result.metrics]
    assert parted[0]
    assert not parted[-1]


def test_gates_are_trained_whatever_policy_the_network_came_with(gated: Runs) -> None:
    for _, gate in named_gates(gated.network):
        gate.policy = "open"
    gated(PLAIN)
    first, last = gated.weights[0], gated.weights[-1]
    moved = [
        name for name in first if ".gate." in name and not torch.equal(first[name], last[name])
    ]
    assert len(moved) >= 9


def test_targets_of_layers_are_the_budget(gated: Runs) -> None:
    """Each gate ends at its own, which on the mean is the budget."""
    targets = [0.9, 0.8, 1, 1, 0.7, 1, 1, 0.8, 0.9]
    result = gated(replace(PLAIN, targets=",".join(map(str, targets))))
    assert result.budget is not None
    assert result.budget.share == pytest.approx(0.9)
    last = result.metrics[0]
    rates = [value for name, value in last.items() if name.startswith("rate.")]
    # Of 12 images, the next less that there is.
    assert rates == [int(12 * target) / 12 for target in targets]
    assert last["val_execution_rate"] == pytest.approx(fmean(rates))
    told = result.model.description.history[-1]
    assert told["target"] == "per-layer"
    assert told["target_rate"] == pytest.approx(0.9)
    result = gated(replace(PLAIN, targets=",".join(["1"] * 9)))
    assert result.budget is None
    assert result.metrics[0]["val_execution_rate"] == 1.0
    assert result.model.description.history[-1]["target_rate"] == 1.0


def test_a_run_is_resumed_with_its_own_images_only(gated: Runs) -> None:
    gated(PLAIN)
    description = Description("cifar_resnet20", 3, input=InputSpec(size=(3, 32, 32)))
    model = Model(gated.network, description)
    less = gated.train.limited(20)
    told = "with 24 images to train on and 12 to validate on, not with 20"
    with pytest.raises(UserError, match=told):
        finetune(model, less, gated.val, PLAIN, out=gated.out, resume=True)
