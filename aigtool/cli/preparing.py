"""From a training command's arguments to what is trained, on which images, by which teacher."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aigtool.cli.console import note, percent, warn
from aigtool.cli.grouping import OVERRIDES
from aigtool.cli.opening import collect, open_reference, ready, warn_of_classes
from aigtool.cli.recipe import CONTEXT, as_kept
from aigtool.data.augmentation import Augmentation
from aigtool.data.images import DataSource
from aigtool.data.training import TrainingImages, open_training_images
from aigtool.device import find_device
from aigtool.errors import UserError
from aigtool.launch import place
from aigtool.models.files import DENSE_FILE, Model, load_model
from aigtool.models.override import InputOverride
from aigtool.training.config import FinetuneConfig

SEEN_LOSS = 0.02
"""A cross entropy under this on held-out images says that the weights have learned them."""


@dataclass(frozen=True)
class Prepared:
    """What a training run needs besides its options.

    Attributes:
        model: The gated network.
        digests: SHA-256 of its file, and of that of the network before gating, if there is one.
        source: Where the images come from.
        images: To train and to validate on.
        reference: What to compare with, ``dense`` or ``open``, and the network.
        device: Where to train.
    """

    model: Model
    digests: dict[str, str | None]
    source: DataSource
    images: TrainingImages
    reference: tuple[str, Model]
    device: torch.device

    @property
    def teacher(self) -> Model | None:
        """The network before gating, where there is one of its own."""
        kind, reference = self.reference
        return reference if kind == "dense" else None

    def context(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ``config.yaml`` says besides the options of the recipe."""
        kept = {name: as_kept(name, settings[name]) for name in CONTEXT}
        return {**kept, **self.digests, "device": str(self.device)}


def prepare(settings: Mapping[str, Any], augmentation: Augmentation) -> Prepared:
    """Open the network and the images that a training command's options name."""
    path, data = Path(settings["model"]), str(settings["data"])
    device = find_device(settings["device"])
    override = InputOverride(**{name: settings[name] for name in OVERRIDES})
    model = load_model(path).overridden(override)
    if not model.description.gated_blocks:
        raise UserError(f"{path} has no gates: make it adaptive with aigtool convert first")
    source = DataSource(data, settings["data_dir"], settings["download"], settings["class_map"])
    images = open_training_images(
        model.description,
        source,
        val_fraction=settings["val_fraction"],
        augmentation=augmentation,
    )
    images = replace(images, train=images.train.limited(settings["limit"]))
    dense = None if settings["dense"] is None else Path(settings["dense"])
    reference = open_reference(model, path, dense, override)
    before = (dense or path.parent / DENSE_FILE) if reference[0] == "dense" else None
    digests = {"model_sha256": _sha256(path), "dense_sha256": _sha256(before)}
    return Prepared(model, digests, source, images, reference, device)


def _sha256(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def tell_before(prepared: Prepared, config: FinetuneConfig) -> None:
    """Say how accurate the network is before, and whether it has seen its validation images."""
    images, (kind, reference) = prepared.images, prepared.reference
    if config.distill is None and kind == "open" and prepared.model.description.new_classifier:
        note("the classifier is new, so nothing is learnt from the network before gating")
    note(
        f"data: {prepared.source.name}, {len(images.train)} images to train on, "
        f"{len(images.val)} to validate on"
    )
    warn_of_classes(images.train)
    before = ready(reference, prepared.device)
    _, count = place()
    size = max(1, config.batch_size // count)
    trace = collect(f"evaluating {kind}", before, images.val, "open", size, config.workers)
    summary, loss = trace.summary(), float(trace.images["loss"].mean())
    note(
        f"{kind}: top-1 {percent(summary['top1'], summary['top1_stderr'])} on the validation "
        f"images ({summary['correct']} of {summary['images']}), cross entropy {loss:.3f}"
    )
    if images.held_out and loss < SEEN_LOSS:
        warn(
            f"the weights have probably seen the images held out of train/ (cross entropy "
            f"{loss:.4f}): accuracy there says little; give the data a val/ of new images"
        )
