"""What ``aigtool analyze`` does: one network or trace, several side by side, or one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from aigtool.analysis.comparison import check_same_gates
from aigtool.analysis.figures import write_analysis, write_comparison, write_figure
from aigtool.analysis.findings import ASKED, tell_errors, tell_groups
from aigtool.analysis.groups import read_groups
from aigtool.analysis.image_plots import inference_graph
from aigtool.analysis.one_image import block_table
from aigtool.analysis.pictures import thumbnail
from aigtool.analysis.rates import gate_rates
from aigtool.cli.analyze import TRACE
from aigtool.cli.console import (
    note,
    percent,
    print_facts,
    print_json,
    print_table,
    share,
    status,
    warn,
)
from aigtool.cli.opening import collect, open_for, ready_to_serve
from aigtool.cli.reporting import gate_counts, named, paired
from aigtool.conversion import named_gates
from aigtool.data.decoding import read_image
from aigtool.data.images import DataSource, ImageSet, default_split, open_images
from aigtool.data.loading import eval_transform
from aigtool.errors import UserError
from aigtool.gates import Policy
from aigtool.inference.answers import ServedNetwork
from aigtool.models.description import InputSpec
from aigtool.models.files import Model, load_model
from aigtool.models.override import InputOverride
from aigtool.output import records
from aigtool.trace import ExecutionTrace, load_trace
from aigtool.training.run_folder import read_metrics


@dataclass(frozen=True)
class Asked:
    """The images that model files are run on, and how."""

    data: str | None
    split: str | None
    limit: int | None
    data_dir: str | None
    download: bool
    class_map: str | None
    policy: Policy | None
    override: InputOverride
    device: torch.device
    batch_size: int
    workers: int | None
    seed: int

    @property
    def source(self) -> DataSource:
        """Where the images are."""
        return DataSource(str(self.data), self.data_dir, self.download, self.class_map)

    def images(self, model: Model) -> ImageSet:
        """Open them for a model."""
        return open_for(model, self.source, self.split, self.limit)

    def shown(self, trace: ExecutionTrace) -> ImageSet | None:
        """Open those that a trace is of, to be looked at, if there are any."""
        if self.data is None:
            return None
        split = default_split(self.source) if self.split is None else self.split
        transform = eval_transform(InputSpec())
        return open_images(self.source, split, transform, trace.classes).limited(self.limit)

    def trace(self, model: Model, images: ImageSet) -> ExecutionTrace:
        """Run a model on images."""
        prepared = ready_to_serve(model, self.device, self.seed)
        policy = self.policy or model.description.policy
        label = "running the network"
        return collect(label, prepared, images, policy, self.batch_size, self.workers)


def analyze_one(
    subject: Path,
    asked: Asked,
    folder: Path,
    formats: Sequence[str],
    groups: str | None,
    clusters: int | None,
    *,
    json: bool,
) -> list[Path]:
    """Write and print the analysis of a model file or of a trace."""
    if subject.suffix == TRACE:
        trace = load_trace(subject)
        named_groups = None if groups is None else read_groups(groups, trace.classes)
        try:
            images = asked.shown(trace)
        except UserError as error:  # of a trace they are only to be looked at
            warn(str(error))
            images = None
    else:
        model = _open_gated(subject, asked.override)
        images = asked.images(model)
        named_groups = None if groups is None else read_groups(groups, images.classes)
        trace = asked.trace(model, images)
    with status("drawing and testing"):
        written, found = write_analysis(
            trace,
            folder,
            groups=named_groups,
            clusters=clusters,
            images=images,
            metrics=_metrics(subject),
            formats=formats,
            seed=asked.seed,
        )
    if undecided := found["undecided_gates"]:
        warn(
            f"{', '.join(undecided)}: one probability for all images, next to the threshold, so "
            "rounding decides, not the image; nothing can be read into when they execute"
        )
    if "contact_sheet" in found:
        warn(found["contact_sheet"])
    if json:
        print_json({**found, "out": [str(path) for path in written]})
        return written
    print_table(
        f"{trace.source}, {found['images']} images: {found['adaptive_gates']} gates adaptive, "
        f"{found['always_on_gates']} always on, {found['always_off_gates']} always off",
        ["gate", "executed", "rate", "lowest\nclass", "highest\nclass", "mean\nprobability"],
        [
            [
                row["gate"],
                f"{row['executed']}",
                *(share(row[name]) for name in ("rate", "class_min", "class_max", "probability")),
            ]
            for row in gate_rates(trace).to_dict("records")
        ],
    )
    _tell(found)
    return written


def compare(
    subjects: Sequence[Path], asked: Asked, folder: Path, formats: Sequence[str], *, json: bool
) -> list[Path]:
    """Write and print how model files and traces compare with the first."""
    loaded = {
        name: load_trace(path)
        if path.suffix == TRACE
        else load_model(path).overridden(asked.override)
        for name, path in named(subjects).items()
    }
    check_same_gates({name: sorted(_gates(subject)) for name, subject in loaded.items()})
    images = {name: asked.images(m) for name, m in loaded.items() if isinstance(m, Model)}
    traces = {
        name: asked.trace(subject, images[name]) if isinstance(subject, Model) else subject
        for name, subject in loaded.items()
    }
    written, rows = write_comparison(traces, folder, formats=formats)
    if json:
        print_json({"rows": records(rows), "out": [str(path) for path in written]})
        return written
    first, *others = records(rows)
    if unpaired := [row["trace"] for row in others if row["difference"] is None]:
        note(
            f"{', '.join(unpaired)}: not of the same images as {first['trace']}, by file and "
            "label, in order; so nothing is paired"
        )
    print_table(
        "compared with the first: points paired by image, share of decisions alike",
        [
            *("", "right", "top-1, %", "paired\npoints", "rate", "GFLOPs"),
            *("adaptive\n/on/off", "alike"),
        ],
        [
            [
                row["trace"],
                f"{row['correct']}/{row['images']}",
                percent(row["top1"], row["top1_stderr"]).removesuffix(" %"),
                paired(row),
                share(row["execution_rate"]),
                f"{row['gflops_executed']:.4g}",
                gate_counts(row),
                share(row["gate_agreement"]),
            ]
            for row in records(rows)
        ],
    )
    return written


def _gates(subject: Model | ExecutionTrace) -> Sequence[str]:
    """Return the names of gates that a network has."""
    if isinstance(subject, ExecutionTrace):
        return subject.gates
    return [name for name, _ in named_gates(subject.network)]


def draw_image(
    path: Path,
    image: Path,
    override: InputOverride,
    folder: Path,
    formats: Sequence[str],
    device: torch.device,
    *,
    json: bool,
) -> list[Path]:
    """Write the inference graph of one image, and its blocks as a table."""
    model, picture = _open_gated(path, override), read_image(str(image))
    network = ServedNetwork(model, device)
    answers = network(torch.stack([eval_transform(model.description.input)(picture)]))
    blocks = block_table(answers, network.flops)
    probability, label = (float(value) for value in answers.logits.softmax(1)[0].max(0))
    names = model.description.class_names
    name = str(int(label)) if names is None else names[int(label)]
    gflops = float(network.flops.executed(answers.executed.numpy(), model.description.policy)[0])
    said = f"{name}, {100 * probability:.1f} %, {gflops:.4g} GFLOPs"
    figure = inference_graph(blocks, thumbnail(picture), said, f"{path}, {image}")
    written = write_figure(folder, f"{image.stem}-blocks", blocks, dict.fromkeys(formats, figure))
    if json:
        rows = {"blocks": records(blocks), "gflops": gflops, "probability": probability}
        print_json({"name": name, **rows, "out": [str(file) for file in written]})
    else:
        executed = int(blocks["executed"].sum())
        print_facts(str(image), [("answer", said), ("blocks", f"{executed} of {len(blocks)}")])
    return written


def _open_gated(path: Path, override: InputOverride) -> Model:
    """Read a model file whose network has gates."""
    model = load_model(path).overridden(override)
    if not model.description.gated_blocks:
        raise UserError(f"{path} has no gates to analyse: aigtool convert adds them")
    return model


def _metrics(model: Path) -> pd.DataFrame | None:
    """Read the metrics of the run folder that a model file lies in, if it does."""
    file = model.parent / "metrics.csv"
    if model.name != "best.safetensors" or not file.is_file():
        return None
    try:
        return read_metrics(file)
    except (KeyError, ValueError) as error:
        why = " ".join(str(error).split())
        note(f"no figure of gates in training: {file} is not as aigtool finetune writes it ({why})")
        return None


def _tell(found: dict[str, Any]) -> None:
    """Say whether groups of classes part, and whether wrong answers cost more."""
    tested = [name for name in ASKED if name in found]
    facts = [(name.replace("_", " "), _groups(found[name])) for name in tested]
    if told := tell_errors(found["errors"]):
        facts.append(("wrong answers", told))
    print_facts("", facts)
    for name in tested:
        if "p" in found[name]:
            note(f"{name.replace('_', ' ')}: {ASKED[name]}")


def _groups(tested: dict[str, Any]) -> str:
    if "reason" in tested:
        return str(tested["reason"])
    members = tested["members"]
    lists = [", ".join(names) for names in members]
    if isinstance(members, dict):
        lists = [f"{name} ({', '.join(names)})" for name, names in members.items()]
    return f"{' | '.join(lists)}: {tell_groups(tested)}"
