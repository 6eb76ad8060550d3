"""A training run as it is shown while it goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aigtool.cli.console import note, percent, progress, share

if TYPE_CHECKING:
    from aigtool.training.config import FinetuneConfig
    from aigtool.training.loop import StepReport


@contextmanager
def training_progress(
    config: "FinetuneConfig", images: int, label: str = "training"
) -> Iterator[tuple[Callable[["StepReport"], None], Callable[[dict[str, Any]], None]]]:
    """Show each step in the progress line and each epoch in a line of its own."""
    with progress(label, config.epochs * images) as advance:

        def on_step(step: "StepReport") -> None:
            last = step.step == step.steps
            done = images - (step.steps - 1) * config.batch_size if last else config.batch_size
            advance(
                done,
                about=f"epoch {step.epoch}/{config.epochs} loss {step.loss:.3f} "
                f"top-1 {step.top1:.1f} % rate {step.execution_rate:.3f}",
            )

        def on_epoch(row: dict[str, Any]) -> None:
            parts = [
                f"{label}, epoch {row['epoch']}/{config.epochs}: loss {row['train_loss']:.3f}",
                f"validation top-1 {percent(row['val_top1'], row['val_top1_stderr'])}",
            ]
            if row["val_execution_rate"] is not None:
                parts += [
                    f"execution rate {share(row['val_execution_rate'])} "
                    f"(training {share(row['train_execution_rate'])})",
                    f"GFLOPs {share(row['val_flops_fraction'])} of dense",
                    f"{row['val_adaptive_gates']} adaptive gates",
                ]
            parts += [f"{row['train_images_per_second']:,.0f} images/s"]
            note(", ".join(parts) + (", best so far" if row["best"] else ""))

        yield on_step, on_epoch
