"""What ``aigtool demo`` does, step by step; the example of the library from end to end."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from aigtool.analysis.figures import write_analysis
from aigtool.cli.console import note, progress
from aigtool.cli.opening import Ready, collect, ready_to_serve
from aigtool.cli.reporting import training_progress
from aigtool.conversion import convert
from aigtool.data.images import DIGITS, DataSource, open_images
from aigtool.data.loading import eval_transform
from aigtool.data.training import TrainingImages, open_training_images
from aigtool.gates import Policy
from aigtool.inference.benchmark import Setting, measure_all
from aigtool.inference.files import write_bench
from aigtool.models.description import Description, InputSpec
from aigtool.models.files import Model, load_model, save_model
from aigtool.models.zoo import create_network
from aigtool.report.page import write_report
from aigtool.robustness.cases import Judged
from aigtool.robustness.defenses import jpeg_defense
from aigtool.robustness.files import write_attack
from aigtool.robustness.report import AttackPlan, report_attack
from aigtool.training.config import FinetuneConfig
from aigtool.training.loop import finetune

NETWORK = "cifar_resnet20"
EPSILON = 8 / 255

# From random weights, where the defaults are for a network that was trained.
_TRAINING = FinetuneConfig(
    epochs=8, aug_repeats=1, opt="adamw", lr=3e-3, weight_decay=0.02, warmup_epochs=1, distill=0.0
)
_RECIPE = FinetuneConfig(target_rate=0.65, epochs=10, aug_repeats=1)


def run_demo(
    folder: Path, device: torch.device, seed: int
) -> tuple[dict[str, Any], list[Path], float]:
    """Train, convert, fine-tune, measure, look into, attack and time a ResNet-20 on digits.

    Returns:
        The figures of the dense and of the gated network, the files written, the seconds taken.
    """
    start = time.monotonic()
    torch.manual_seed(seed)
    network = create_network(NETWORK)
    model = Model(network, Description(NETWORK, 10, input=InputSpec.of(network)))
    images = open_training_images(model.description, DataSource(DIGITS))

    note(f"1. train {NETWORK} on {len(images.train)} digits, as any network is trained")
    recipe = replace(_TRAINING, seed=seed)
    dense = _train("training", model, images, recipe, folder / "dense", device)

    note("2. convert: a gate before each of its residual blocks")
    gated = Model(convert(dense.network), dense.description.after("convert"))
    save_model(folder / "converted.safetensors", gated.network, gated.description)

    note(f"3. fine-tune it to run {100 * _RECIPE.budget.share:.0f} % of its blocks")
    recipe = replace(_RECIPE, seed=seed)
    gated = _train("fine-tuning", gated, images, recipe, folder / "run", device)

    note("4. measure both on test images that neither has seen")
    dense = load_model(folder / "run" / "dense.safetensors")
    test = open_images(DIGITS, "test", eval_transform(dense.description.input))
    subjects: dict[str, tuple[Ready, Policy]] = {
        "dense": (ready_to_serve(dense, device), "open"),
        "gated": (ready_to_serve(gated, device), "argmax"),
    }
    traces = {
        name: collect(f"evaluating {name}", subject, test, policy, batch_size=128, workers=0)
        for name, (subject, policy) in subjects.items()
    }
    for name, trace in traces.items():
        trace.save(folder / "traces" / f"{name}.parquet")

    note("5. look into the gates")
    figures, _ = write_analysis(traces["gated"], folder / "analysis")

    note("6. attack both with FGSM, with and without JPEG as a defence; attack what gates execute")
    judged = {
        name: Judged(s.network, s.flops, policy) for name, (s, policy) in reversed(subjects.items())
    }
    attacked = report_attack(
        judged,
        test,
        AttackPlan((0, EPSILON / 2, EPSILON), defenses=[jpeg_defense()], compute=[EPSILON]),
        progress=progress,
    )
    curves = write_attack(attacked, folder / "attack")

    note("7. time both in turns, on one image")
    settings = [Setting("skip", device, torch.float32, 1, torch.get_num_threads())]
    timed = [*measure_all(gated, settings, images=test, patterns=32, rounds=3, seed=seed)]
    times = write_bench(timed, folder / "bench", NETWORK)

    note("8. put all on one page")
    page = folder / "report.html"
    write_report([folder], page)

    results = {
        name: trace.summary() | _attacked(attacked.rows, name) for name, trace in traces.items()
    }
    files = [folder / "run", folder / "traces", *figures, *curves, *times, page]
    return results, files, time.monotonic() - start


def _train(
    label: str,
    model: Model,
    images: TrainingImages,
    config: FinetuneConfig,
    out: Path,
    device: torch.device,
) -> Model:
    with training_progress(config, len(images.train), label) as callbacks:
        return finetune(
            model,
            images.train,
            images.val,
            config,
            out=out,
            device=device,
            callbacks=callbacks,
        ).model


def _attacked(rows: pd.DataFrame, name: str) -> dict[str, float]:
    """Return a network's accuracy at the largest epsilon, undefended and behind JPEG."""
    chosen = rows[(rows["network"] == name) & (rows["epsilon"] == EPSILON)]
    top1 = chosen.set_index("defense")["top1"]
    return {"top1_fgsm": float(top1["none"]), "top1_fgsm_jpeg": float(top1["jpeg"])}
