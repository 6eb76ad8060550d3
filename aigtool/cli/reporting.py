"""What several commands show: networks side by side, and a training run while it goes on."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigtool.cli.console import note, percent, print_table, progress, share, warn

LANDED = 0.05
"""How far from its budget a network may be without thresholds before a warning says so."""

if TYPE_CHECKING:
    from aigtool.budget import Budget
    from aigtool.training.config import FinetuneConfig
    from aigtool.training.loop import Callbacks
    from aigtool.training.trainer import StepReport


def gate_counts(summary: Mapping[str, Any], prefix: str = "") -> str:
    """Show how many gates are adaptive, always on and always off, or how many in the mean."""
    counts = [summary[f"{prefix}{kind}_gates"] for kind in ("adaptive", "always_on", "always_off")]
    shown = (f"{count:.1f}".removesuffix(".0") for count in counts)
    return "/".join(shown) if any(counts) else "-"


def paired(row: dict[str, Any]) -> str:
    """Show by how many points top-1 is above that of the network compared with, image by image."""
    if row.get("difference") is None:
        return "-"
    return f"{row['difference']:+.1f} ± {row['difference_stderr']:.1f}"


def named(paths: Sequence[Path], taken: Container[str] = ()) -> dict[str, Path]:
    """Name files by their stems, or as given where that would not tell them apart."""
    stems = [path.stem for path in paths]
    is_clear = len({*stems}) == len(stems) and not any(stem in taken for stem in stems)
    return {stem if is_clear else str(path): path for stem, path in zip(stems, paths, strict=True)}


def of_data(data: str | None, data_dir: object = None, class_map: object = None) -> str:
    """Return the options that say once more where images come from.

    Example:
        >>> of_data("pets/"), of_data("wds/pets", "shards")
        ('--data pets/', '--data wds/pets --data-dir shards')
    """
    options = {"--data": data, "--data-dir": data_dir, "--class-map": class_map}
    return " ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def print_summaries(title: str, summaries: Mapping[str, dict[str, Any]]) -> None:
    """Print what traces sum up to, a column each."""
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "top-1": lambda s: percent(s["top1"], s["top1_stderr"]),
        "right": lambda s: f"{s['correct']} of {s['images']}",
        "paired difference, points": paired,
        "top-5": lambda s: percent(s["top5"], s["top5_stderr"]),
        "execution rate": lambda s: share(s["execution_rate"]),
        "GFLOPs executed": lambda s: f"{s['gflops_executed']:.4g}",
        "of dense": lambda s: share(s["flops_fraction"]),
        "spread over images": lambda s: share(s["flops_fraction_stdev"]),
        "gates adaptive/on/off": gate_counts,
        "images/s": lambda s: f"{s['images_per_second']:,.0f}",
    }
    dense = next(iter(summaries.values()))["gflops_dense"]
    print_table(
        f"{title}, {dense:.4g} GFLOPs dense",
        ["", *summaries],
        [[name, *(show(summary) for summary in summaries.values())] for name, show in rows.items()],
    )


def warn_of_landing(budget: "Budget", landed: float) -> None:
    """Say so if thresholds, and not training, brought a network to its budget."""
    if abs(landed - budget.share) > LANDED:
        warn(
            f"training ended at {share(landed)} and thresholds did the rest, {budget}, "
            "which costs accuracy: train for more epochs, or on more images"
        )


@contextmanager
def told_how_to_go_on(how: str, saved: Path | None = None) -> Iterator[None]:
    """Say how to go on, from what was saved by then, when Ctrl-C stops what is done within."""
    try:
        yield
    except KeyboardInterrupt:
        is_begun = saved is None or saved.exists()
        note(f"stopped; go on with: {how}" if is_begun else "stopped before anything was saved")
        raise


@contextmanager
def training_progress(
    config: "FinetuneConfig", images: int, label: str = "training"
) -> Iterator["Callbacks"]:
    """Show each step in the progress line, and each epoch in a line of its own.

    What is done by the first step is no part of the rate: of a run that goes on, it is what was
    done before.
    """
    from aigtool.training.loop import Callbacks

    with progress(label, config.looks * images) as advance:
        done: int | None = None
        skipped: list[str] = []

        def on_skip(name: str) -> None:
            skipped.append(name)
            advance(0, about=f"choosing where gates start, blocks skipped: {len(skipped)}")

        def on_step(step: "StepReport") -> None:
            nonlocal done
            if done is None and skipped:
                note(f"gates start by skipping {len(skipped)}: {', '.join(skipped)}")
            now = (step.epoch - 1) * config.aug_repeats * images + step.images
            advance(
                now - (done or 0),
                about=f"epoch {step.epoch}/{config.epochs} loss {step.loss:.3f} "
                f"top-1 {step.top1:.1f} % rate {step.execution_rate:.3f}",
                earlier=done is None,
            )
            done = now

        def on_epoch(row: dict[str, Any]) -> None:
            parts = [
                f"{label}, epoch {row['epoch']}/{config.epochs}: loss {row['train_loss']:.3f}",
                f"validation top-1 {percent(row['val_top1'], row['val_top1_stderr'])}",
            ]
            if row["val_execution_rate"] is not None:
                parts += [
                    f"execution rate {share(row['val_execution_rate'])} "
                    f"(training {share(row['train_execution_rate'])}, "
                    f"{share(row['train_argmax_rate'])} without noise)",
                    f"GFLOPs {share(row['val_flops_fraction'])} of dense "
                    f"(spread {share(row['val_flops_fraction_stdev'])})",
                    f"gates {gate_counts(row, 'val_')} adaptive/on/off",
                ]
            parts += [f"{row['train_images_per_second']:,.0f} images/s"]
            note(", ".join(parts) + (", best so far" if row["best"] else ""))

        yield Callbacks(on_skip, on_step, on_epoch)
