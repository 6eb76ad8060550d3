"""From a command's arguments to a network on its device and the images it is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from aigtool.cli.console import note, progress, warn
from aigtool.data.images import DataSource, ImageSet, default_split, open_images
from aigtool.data.loading import eval_transform
from aigtool.flops import NetworkFlops, count_flops
from aigtool.gates import Policy
from aigtool.inference.serving import serve
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model, load_reference
from aigtool.models.override import InputOverride
from aigtool.trace import ExecutionTrace, collect_trace


@dataclass(frozen=True)
class Ready:
    """A network that takes pixels, on its device, with its counts."""

    network: PixelNetwork
    flops: NetworkFlops


def ready(model: Model, device: torch.device, seed: int = 0) -> Ready:
    """Put a model on a device, count its multiply-accumulates, and seed what it will draw."""
    return _ready(model, model.network, device, seed)


def ready_to_serve(model: Model, device: torch.device, seed: int = 0) -> Ready:
    """Do so with a copy of the network that is for inference alone; the counts are the same."""
    return _ready(model, serve(model.network, model.description.input.size), device, seed)


def _ready(model: Model, network: nn.Module, device: torch.device, seed: int) -> Ready:
    spec = model.description.input
    flops = count_flops(model.network, spec.size)
    torch.manual_seed(seed)
    return Ready(PixelNetwork(network, spec).to(device).eval(), flops)


def open_for(
    model: Model, source: DataSource, split: str | None, limit: int | None = None
) -> ImageSet:
    """Open the images to evaluate a model on, and say what is special about them."""
    description = model.description
    images = open_images(
        source,
        default_split(source) if split is None else split,
        eval_transform(description.input),
        description.class_names,
    )
    images.check_classes(description.num_classes)
    images = images.limited(limit)
    warn_of_classes(images)
    if split is None:
        note(f"data: {images.name}, {images.split or 'the folder itself'}, {len(images)} images")
    return images


def warn_of_classes(images: ImageSet) -> None:
    """Say it where classes have no images, or folders are not among the classes."""
    if absent := images.absent_classes:
        warn(
            f"a subset of the classes: {len(absent)} of {len(images.classes or ())} have no image "
            f"here ({_first(absent)})"
        )
    if unmapped := images.unmapped:
        warn(f"the class map leaves out folders of {images.name}: {_first(unmapped)}")


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' * (len(names) > 5)}"


def open_reference(
    model: Model, path: Path, dense: Path | None, override: InputOverride
) -> tuple[str, Model]:
    """Find what to compare with; class names that only the gated network has serve both."""
    name, reference = load_reference(model, path, dense, override)
    if reference is model:
        return name, reference
    names = reference.description.class_names or model.description.class_names
    return name, replace(reference, description=replace(reference.description, class_names=names))


def collect(
    label: str,
    subject: Ready,
    images: ImageSet,
    policy: Policy,
    batch_size: int,
    workers: int | None,
    out: Path | None = None,
) -> ExecutionTrace:
    """Run a network over images, show how far it is, and write the trace meanwhile."""
    with progress(label, len(images)) as advance:
        return collect_trace(
            subject.network,
            images,
            flops=subject.flops,
            policy=policy,
            batch_size=batch_size,
            workers=workers,
            progress=advance,
            out=out,
        )
