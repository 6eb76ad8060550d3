"""The execution trace: what every gate decided for every image of a data set."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from aigtool.conversion import gate_policy, named_gates, recorded_decisions
from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.device import synchronize
from aigtool.errors import UserError
from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.gates import Policy
from aigtool.models.description import PixelNetwork
from aigtool.modes import in_mode
from aigtool.output import replacing

_KEY = b"aigtool"
_EXECUTED, _PROBABILITY = "executed.", "probability."

GROUP = 2**14
"""Images that are written at once, lest all columns of a long trace be in memory twice."""

ADAPTIVE = (0.05, 0.95)
"""A gate is adaptive when its execution rate lies strictly between these."""


@dataclass(frozen=True)
class ExecutionTrace:
    """A row an image, a column a gate.

    Attributes:
        images: Columns ``index``, ``file``, ``label``, ``prediction``, ``label_rank`` (0 where the
            prediction is right), ``confidence`` and ``loss``.
        executed: ``(images, gates)``, whether the image executed the block.
        probability: ``(images, gates)``, the gate's probability of executing it.
        flops: Counts of the network, whose blocks name the gates.
        policy: The gate policy it was collected under.
        targets: Each gate's own target, or None.
        classes: Class names in the order of the labels, where they are known.
        source: The data set and split.
        seconds: Time that the network took, without loading images.

    Example:
        >>> from torchvision.transforms.functional import to_tensor
        >>> from aigtool.conversion import convert
        >>> from aigtool.data.images import open_images
        >>> from aigtool.flops import count_flops
        >>> from aigtool.models.description import InputSpec
        >>> from aigtool.models.zoo import create_network
        >>> network = convert(create_network("cifar_resnet20"))
        >>> trace = collect_trace(
        ...     PixelNetwork(network, InputSpec.of(network)),
        ...     open_images("digits", "val", to_tensor).limited(10),
        ...     flops=count_flops(network, (3, 32, 32)),
        ... )
        >>> trace.executed.shape, trace.summary()["images"]
        ((10, 9), 10)
    """

    images: pd.DataFrame
    executed: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    flops: NetworkFlops
    policy: Policy
    targets: tuple[float | None, ...]
    classes: tuple[str, ...] | None
    source: str
    seconds: float

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gated blocks, in the order of execution."""
        return tuple(block.name for block in self.flops.gated_blocks)

    @cached_property
    def gflops(self) -> npt.NDArray[np.float64]:
        """``(images,)``, what each image took: multiply-accumulates, gates included."""
        return self.flops.executed(self.executed, self.policy)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """``(images,)``, whether the prediction is right."""
        right: npt.NDArray[np.bool_] = self.images["label_rank"].to_numpy() == 0
        return right

    def summary(self) -> dict[str, Any]:
        """Return the headline figures: percent for accuracies, 0..1 for rates and fractions."""
        count = len(self.images)
        rates = self.executed.mean(axis=0)
        correct, correct5 = int(self.correct.sum()), int((self.images["label_rank"] < 5).sum())
        executed = math.fsum(self.gflops) / count
        low, high = ADAPTIVE
        return {
            "correct": correct,
            "top1": 100 * correct / count,
            "top5": 100 * correct5 / count,
            "images": count,
            "top1_stderr": _stderr(correct, count),
            "top5_stderr": _stderr(correct5, count),
            "policy": self.policy,
            "execution_rate": float(rates.mean()) if len(rates) else None,
            "gflops_dense": self.flops.gflops_dense,
            "gflops_executed": executed,
            "flops_fraction": executed / self.flops.gflops_dense,
            "flops_fraction_stdev": float(self.gflops.std()) / self.flops.gflops_dense,
            "adaptive_gates": int(((rates > low) & (rates < high)).sum()),
            "always_on_gates": int((rates >= high).sum()),
            "always_off_gates": int((rates <= low).sum()),
            "images_per_second": count / self.seconds,
            "gates": [
                {"name": name, "rate": float(rate), "target": target}
                for name, rate, target in zip(self.gates, rates, self.targets, strict=True)
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write it as Parquet, which pandas, DuckDB and Spark read, whole or not at all."""
        with writing_trace(path) as write:
            write(self)


@contextmanager
def writing_trace(path: str | Path) -> Iterator[Callable[[ExecutionTrace], None]]:
    """Write a trace while it is collected, whole or not at all.

    Args:
        path: Of the Parquet file.

    Yields:
        Takes the next images' part of the trace; it wants one at least.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "twice.parquet"
        >>> with writing_trace(path) as write:
        ...     write(trace)
        ...     write(trace)
        >>> len(load_trace(path).images) == 2 * len(trace.images)
        True
    """
    waiting: list[ExecutionTrace] = []
    count, seconds = 0, 0.0
    with replacing(path) as temporary, ExitStack() as stack:
        file: pq.ParquetWriter | None = None

        def write_waiting() -> ExecutionTrace:
            nonlocal file, count
            part = _joined(waiting)
            waiting.clear()
            count = 0
            table = _table(part)
            file = file or stack.enter_context(pq.ParquetWriter(temporary, table.schema))
            file.write_table(table, GROUP)
            return part

        def write(part: ExecutionTrace) -> None:
            nonlocal count, seconds
            if count >= GROUP:
                write_waiting()
            waiting.append(part)
            count += len(part.images)
            seconds += part.seconds

        yield write
        last = write_waiting()
        about = {
            "flops": asdict(last.flops),
            "policy": last.policy,
            "targets": last.targets,
            "classes": last.classes,
            "source": last.source,
            "seconds": seconds,
        }
        assert file is not None
        file.add_key_value_metadata({_KEY.decode(): json.dumps(about)})


def _table(trace: ExecutionTrace) -> pa.Table:
    columns = {str(name): column.to_numpy() for name, column in trace.images.items()}
    for number, name in enumerate(trace.gates):
        columns[_EXECUTED + name] = trace.executed[:, number]
        columns[_PROBABILITY + name] = trace.probability[:, number]
    return pa.table(columns)


def _joined(parts: Sequence[ExecutionTrace]) -> ExecutionTrace:
    """Put parts of a trace together."""
    return replace(
        parts[0],
        images=pd.concat([part.images for part in parts], ignore_index=True),
        executed=np.concatenate([part.executed for part in parts]),
        probability=np.concatenate([part.probability for part in parts]),
        seconds=sum(part.seconds for part in parts),
    )


def load_trace(path: str | Path) -> ExecutionTrace:
    """Read what ``ExecutionTrace.save`` wrote.

    Raises:
        UserError: The file is missing, cut short, or no trace.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"trace {path}: no such file; `aigtool evaluate --out FILE` writes one")
    try:
        with pq.ParquetFile(path) as file:
            told = (file.metadata.metadata or {}).get(_KEY)
            if told is None:
                raise ValueError("it does not say of which network")
            about = json.loads(told)
            blocks = tuple(BlockFlops(**block) for block in about["flops"].pop("blocks"))
            flops = NetworkFlops(**about.pop("flops"), blocks=blocks)
            names = [block.name for block in flops.gated_blocks]
            of_gates = (_EXECUTED, _PROBABILITY)
            of_images = [name for name in file.schema_arrow.names if not name.startswith(of_gates)]
            images = file.read(of_images).to_pandas()
            executed = _matrix(file, _EXECUTED, names, np.bool_)
            probability = _matrix(file, _PROBABILITY, names, np.float32)
        return ExecutionTrace(
            images=images,
            executed=executed,
            probability=probability,
            flops=flops,
            policy=about["policy"],
            targets=tuple(about["targets"]),
            classes=None if about["classes"] is None else tuple(about["classes"]),
            source=about["source"],
            seconds=about["seconds"],
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"trace {path} is no whole execution trace ({error}); `aigtool evaluate --out FILE` "
            "writes one"
        ) from error


def accuracy_difference(
    traces: Sequence[ExecutionTrace], reference: ExecutionTrace
) -> tuple[float, float]:
    """Return by how much top-1 is above that of a reference, image by image.

    Paired by image, the images that both get right or wrong say nothing and add no noise.

    Args:
        traces: Of one network, or of several seeds, whose mean is taken for each image.
        reference: Of the network to compare with, over the same images.

    Returns:
        The difference in percentage points, and its standard error over images; 1.96 of those on
        either side are a 95 % interval.

    Raises:
        UserError: They are over other images.
    """
    keys = ["file", "label"]
    if any(not trace.images[keys].equals(reference.images[keys]) for trace in traces):
        raise UserError("traces over different images: expected the same ones in the same order")
    mean = np.mean([trace.correct for trace in traces], axis=0)
    differences = 100 * (mean - reference.correct)
    return float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))


def collect_trace(
    network: PixelNetwork,
    images: ImageSet,
    *,
    flops: NetworkFlops,
    policy: Policy = "argmax",
    batch_size: int = 128,
    workers: int | None = 0,
    progress: Callable[[int], None] = lambda _: None,
    out: str | Path | None = None,
) -> ExecutionTrace:
    """Run a network over a data set and record every gate's decision for every image.

    Args:
        network: Takes pixels; gated or not. It is evaluated, and left as it was.
        images: The data set.
        flops: What ``count_flops`` counted for the network.
        policy: The gate policy.
        batch_size: Images a batch.
        workers: Processes that read images, as of ``load_batches``.
        progress: Called with the number of images done after each batch.
        out: Where to write it meanwhile.

    Returns:
        The trace, in the order of the data set.
    """
    parts: list[ExecutionTrace] = []
    with nullcontext(lambda _: None) if out is None else writing_trace(out) as write:
        for part in _collected(
            network, images, flops=flops, policy=policy, batch_size=batch_size, workers=workers
        ):
            parts.append(part)
            write(part)
            progress(len(part.images))
    return _joined(parts)


def _collected(
    network: PixelNetwork,
    images: ImageSet,
    *,
    flops: NetworkFlops,
    policy: Policy,
    batch_size: int,
    workers: int | None,
) -> Iterator[ExecutionTrace]:
    """Yield each batch's part of a trace."""
    device = network.mean.device
    gates = dict(named_gates(network))
    targets = tuple(gate.target for gate in gates.values())
    done = 0
    with (
        torch.inference_mode(),
        in_mode(network, training=False),
        gate_policy(network, policy),
        recorded_decisions(network) as decisions,
    ):
        for batch in load_batches(images, batch_size=batch_size, workers=workers):
            pixels, labels = (tensor.to(device) for tensor in batch)
            if not done:
                network(pixels)  # The first pass pays for memory and kernels: not timed.
            start = time.perf_counter()
            logits = network(pixels).float()
            synchronize(device)
            seconds = time.perf_counter() - start
            made = [decisions[name] for name in gates]
            probability = _columns([d.logit.sigmoid() for d in made], len(labels))
            index = np.arange(done, done + len(labels))
            done += len(labels)
            files = [images.filename(number) for number in index.tolist()]
            yield ExecutionTrace(
                images=pd.DataFrame({"index": index, "file": files, **_judge(logits, labels)}),
                executed=_columns([d.scale > 0 for d in made], len(labels)),
                probability=probability.astype(np.float32),
                flops=flops,
                policy=policy,
                targets=targets,
                classes=images.classes,
                source=f"{images.name} {images.split}".strip(),
                seconds=seconds,
            )


def _judge(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    confidence = logits.softmax(1).amax(1)
    values = {
        "label": labels,
        "prediction": ranked[:, 0],
        "label_rank": (ranked == labels[:, None]).int().argmax(1),
        "confidence": confidence,
        "loss": F.cross_entropy(logits, labels, reduction="none"),
    }
    return {key: value.cpu().numpy() for key, value in values.items()}


def _columns(values: list[torch.Tensor], count: int) -> npt.NDArray[Any]:
    if not values:
        return np.zeros((count, 0), dtype=bool)
    return torch.stack(values, dim=1).cpu().numpy()


def _matrix(
    file: pq.ParquetFile, prefix: str, names: Sequence[str], dtype: type
) -> npt.NDArray[Any]:
    """Read a column a gate, one at a time, lest all be in memory twice."""
    values = np.empty((file.metadata.num_rows, len(names)), dtype)
    for number, name in enumerate(names):
        values[:, number] = file.read([prefix + name])[prefix + name].to_numpy()
    return values


def _stderr(correct: int, count: int) -> float:
    """Return the standard error of a percentage."""
    share = correct / count
    return float(100 * np.sqrt(share * (1 - share) / count))
