"""Our FGSM and PGD beside those of foolbox and torchattacks, in turns in one process.

The networks, images and threads are the same; the adversarial images are too, which is checked. A
row gives medians, and the ratio of ours to the faster library's, with its quartiles over rounds.

FGSM, which takes a twentieth of the time, gets ten times the rounds.

python benchmarks/attacks.py [--model FILE] [--batch-size 64] [--rounds 15]
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import foolbox
import torch
import torchattacks
from torch import Tensor

import aigtool
from aigtool.inference.timing import take_turns

EPSILON = 8 / 255
STEPS = 20


def calls(
    network: aigtool.PixelNetwork, pixels: Tensor, labels: Tensor, attack: str
) -> dict[str, Callable[[], Tensor]]:
    """Return each library's attack, ready to be called."""
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    if attack == "fgsm":
        fast = foolbox.attacks.FGSM(random_start=False)
        return {
            "aigtool": lambda: aigtool.fgsm(network, pixels, labels, epsilon=EPSILON),
            "foolbox": lambda: fast(model, pixels, labels, epsilons=EPSILON)[1],
            "torchattacks": lambda: torchattacks.FGSM(network, eps=EPSILON)(pixels, labels),
        }
    size = 2.5 * EPSILON / STEPS
    options: dict[str, Any] = {"steps": STEPS, "random_start": False}
    slow = foolbox.attacks.LinfPGD(abs_stepsize=size, **options)
    theirs = torchattacks.PGD(network, EPSILON, size, **options)
    return {
        "aigtool": lambda: aigtool.pgd(
            network, pixels, labels, epsilon=EPSILON, steps=STEPS, step_size=size
        ),
        "foolbox": lambda: slow(model, pixels, labels, epsilons=EPSILON)[1],
        "torchattacks": lambda: theirs(pixels, labels),
    }


def main() -> None:
    """Print a line an attack and network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a gated model file; else an untrained network")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    if asked.model:
        model = aigtool.load_model(asked.model)
        network, spec = model.network, model.description.input
    else:
        network = aigtool.convert(aigtool.create_network("cifar_resnet56"))
        spec = aigtool.InputSpec.of(network)
    pixels = torch.rand(asked.batch_size, *spec.size, generator=torch.Generator().manual_seed(0))
    subject = aigtool.PixelNetwork(network, spec).eval()
    with torch.no_grad():
        labels = subject(pixels).argmax(1)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, foolbox "
        f"{version('foolbox')}, torchattacks {version('torchattacks')}, "
        f"{torch.get_num_threads()} threads, {asked.batch_size} images, {asked.rounds} rounds"
    )
    print(f"{'':16}  {'aigtool':>8}  {'foolbox':>8}  {'torchattacks':>12}  ratio to the faster")
    for policy in ("argmax", "open"):
        for attack, rounds in (("fgsm", 10 * asked.rounds), ("pgd", asked.rounds)):
            with aigtool.gate_policy(subject, policy):
                print(
                    f"{attack}, gates {policy}".ljust(16),
                    row(subject, pixels, labels, attack, rounds),
                )


def row(
    network: aigtool.PixelNetwork, pixels: Tensor, labels: Tensor, attack: str, rounds: int
) -> str:
    """Return the figures of one attack."""
    listed = calls(network, pixels, labels, attack)
    ours, *others = (call() for call in listed.values())
    assert all(torch.equal(ours, other) for other in others)
    times = take_turns({name: lambda call=call: call for name, call in listed.items()}, rounds)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    faster = min(("foolbox", "torchattacks"), key=medians.__getitem__)
    ratios = times["aigtool"] / times[faster]
    low, _, high = statistics.quantiles(ratios, n=4)
    cells = "  ".join(f"{medians[name]:{8 + 4 * (name == 'torchattacks')}.1f}" for name in listed)
    ratio = medians["aigtool"] / medians[faster]
    return f"{cells}  {ratio:.3f} ({low:.3f} to {high:.3f}), ms"


if __name__ == "__main__":
    main()
