"""Seconds of a gated network beside the network before gating, and beside what they could be."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aigtool.data.images import ImageSet
from aigtool.data.loading import load_batches
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops, count_flops
from aigtool.inference.engines import Engine, EngineName, check_engine, make_engines
from aigtool.inference.timing import take_turns
from aigtool.models.files import Model

Pattern = npt.NDArray[np.bool_]
"""``(N, gates)``, which image of a batch executes which block."""

WARM_UP = 3
ALONE, TOGETHER = 64, 8
"""Patterns by default at batch 1, where one is luck, and on batches, whose images differ."""


@dataclass(frozen=True)
class Setting:
    """How to run.

    Attributes:
        engine: What runs the network.
        device: Where.
        dtype: In which type.
        batch_size: Images a batch.
        threads: That PyTorch or onnxruntime may use.
    """

    engine: EngineName
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    threads: int


@dataclass(frozen=True)
class Row:
    """What was measured; times are of a batch.

    Attributes:
        engine: What ran the networks.
        device: Where.
        dtype: In which type.
        batch_size: Images a batch.
        threads: That it might use.
        patterns: Batches with gates of their own, each timed for itself.
        dense_ms: The network before gating in the same engine. As all times, the mean over
            patterns of medians of the rounds, so that the ratios below are those of the times.
        dense_iqr_ms: Its interquartile range over all rounds.
        open_ms: All gates say "execute", and are computed.
        closed_ms: All say "skip".
        gated_ms: Gates decide as the patterns say.
        gated_iqr_ms: Interquartile range over patterns.
        gated_p50_ms, gated_p95_ms, gated_p99_ms: Percentiles over patterns.
        ideal_ms: ``closed + f * (open - closed)``, f being the executed share of the
            multiply-accumulates that gates can save.
        efficiency: Sum of the ideal over the sum of the measured times.
        efficiency_p5, efficiency_p95: Percentiles over patterns.
        speedup: Dense over gated.
        open_over_dense: What gates cost when they save nothing.
        execution_rate: Mean over gates and images.
        flops_fraction: Executed over all of the dense network, gates included.
        gated_flops_fraction: Mean of f.
    """

    engine: str
    device: str
    dtype: str
    batch_size: int
    threads: int
    patterns: int
    dense_ms: float
    dense_iqr_ms: float
    open_ms: float
    closed_ms: float
    gated_ms: float
    gated_iqr_ms: float
    gated_p50_ms: float
    gated_p95_ms: float
    gated_p99_ms: float
    ideal_ms: float
    efficiency: float
    efficiency_p5: float
    efficiency_p95: float
    speedup: float
    open_over_dense: float
    execution_rate: float
    flops_fraction: float
    gated_flops_fraction: float


def draw_patterns(
    rate: float, gates: int, *, batch_size: int, count: int, seed: int
) -> list[Pattern]:
    """Draw what gates decide: each image and gate on its own, with the given rate.

    Example:
        >>> patterns = draw_patterns(0.6, 16, batch_size=8, count=64, seed=0)
        >>> patterns[0].shape, round(float(np.mean(patterns)), 2)
        ((8, 16), 0.6)
    """
    draw = np.random.default_rng(seed)
    return [draw.random((batch_size, gates)) < rate for _ in range(count)]


class Contest:
    """A gated and a dense network in one engine, ready to be timed side by side.

    Args:
        model: The gated network.
        flops: What ``count_flops`` counted for it.
        setting: How to run.

    Raises:
        UserError: The engine cannot run so.
    """

    def __init__(self, model: Model, flops: NetworkFlops, setting: Setting) -> None:
        self.flops, self.setting = flops, setting
        with _threads(setting.threads):
            self.gated, self.dense = make_engines(
                model, setting.engine, setting.device, setting.dtype, setting.threads
            )

    def decisions(self, pixels: Tensor) -> Pattern:
        """Return what the gates decide of a batch, ``(N, gates)``."""
        with _threads(self.setting.threads):
            return self.gated.decisions(pixels.to(self.setting.device, self.setting.dtype))

    def measure(
        self,
        batches: Sequence[Tensor],
        patterns: Sequence[Pattern],
        *,
        forced: bool,
        rounds: int,
        seed: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Row:
        """Time dense, open, closed and gated in turn, batch by batch.

        Args:
            batches: Images, each ``(N, C, H, W)``; the first is taken again where there are fewer
                than patterns.
            patterns: What the gates decide of each.
            forced: Whether the gates are told so; else they decide by themselves.
            rounds: Turns that each gets for each pattern.
            seed: Of the order of turns.
            progress: Called with 1 after each pattern.

        Returns:
            What was measured.
        """
        times: list[dict[str, npt.NDArray[np.float64]]] = []
        with _threads(self.setting.threads):
            for number, pattern in enumerate(patterns):
                pixels = batches[number % len(batches)].to(self.setting.device, self.setting.dtype)
                every = np.ones_like(pattern)
                told = pattern if forced else None
                calls = {
                    "dense": _ready(self.dense, pixels),
                    "open": _ready(self.gated, pixels, every),
                    "closed": _ready(self.gated, pixels, ~every),
                    "gated": _ready(self.gated, pixels, told),
                }
                if number == 0:
                    take_turns(calls, WARM_UP)
                times.append(take_turns(calls, rounds, seed=seed + number))
                progress(1)
        return self._row(times, patterns)

    def _row(
        self, times: Sequence[dict[str, npt.NDArray[np.float64]]], patterns: Sequence[Pattern]
    ) -> Row:
        medians = {name: np.array([np.median(taken[name]) for taken in times]) for name in times[0]}
        dense = np.concatenate([taken["dense"] for taken in times])
        gated, opened, closed = (medians[name] for name in ("gated", "open", "closed"))
        skippable = np.array([block.skippable for block in self.flops.gated_blocks])
        shares = np.array([(pattern @ skippable).mean() for pattern in patterns]) / skippable.sum()
        ideal = closed + shares * (opened - closed)
        executed = [self.flops.executed(pattern, "argmax").mean() for pattern in patterns]
        return Row(
            engine=self.setting.engine,
            device=str(self.setting.device),
            dtype=str(self.setting.dtype).removeprefix("torch."),
            batch_size=self.setting.batch_size,
            threads=self.setting.threads,
            patterns=len(patterns),
            dense_ms=float(medians["dense"].mean()),
            dense_iqr_ms=_iqr(dense),
            open_ms=float(opened.mean()),
            closed_ms=float(closed.mean()),
            gated_ms=float(gated.mean()),
            gated_iqr_ms=_iqr(gated),
            gated_p50_ms=float(np.percentile(gated, 50)),
            gated_p95_ms=float(np.percentile(gated, 95)),
            gated_p99_ms=float(np.percentile(gated, 99)),
            ideal_ms=float(ideal.mean()),
            efficiency=float(ideal.sum() / gated.sum()),
            efficiency_p5=float(np.percentile(ideal / gated, 5)),
            efficiency_p95=float(np.percentile(ideal / gated, 95)),
            speedup=float(medians["dense"].sum() / gated.sum()),
            open_over_dense=float(np.median(opened / medians["dense"])),
            execution_rate=float(np.mean(patterns)),
            flops_fraction=float(np.mean(executed)) / self.flops.gflops_dense,
            gated_flops_fraction=float(shares.mean()),
        )


Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Of a label and a number of batches: shows how many are done."""


def measure_all(
    model: Model,
    settings: Iterable[Setting],
    *,
    rates: Sequence[float] = (0.6,),
    images: ImageSet | None = None,
    patterns: int | None = None,
    rounds: int = 5,
    seed: int = 0,
    watch: Watch = lambda _label, _count: nullcontext(lambda _: None),
) -> Iterator[Row]:
    """Time a gated network beside the network before gating.

    Args:
        model: The gated network; it is left as it is.
        settings: How to run.
        rates: Execution rates to tell the gates of noise, image by image and gate by gate.
        images: Real ones, of which the gates decide by themselves, in place of that.
        patterns: Batches of gates of their own; by default 64 of one image, 8 of several.
        rounds: Turns of each.
        seed: Of patterns, noise and turns.
        watch: Shows how far it is.

    Yields:
        A row a setting, and a rate where there are no images.

    Raises:
        UserError: The network has no gates, an engine cannot run so, or the images are too few
            for a batch.

    Example:
        >>> from aigtool.conversion import convert
        >>> from aigtool.models.zoo import create_network, describe
        >>> network = create_network("cifar_resnet20")
        >>> model = Model(convert(network), describe("cifar_resnet20", network))
        >>> setting = Setting("skip", torch.device("cpu"), torch.float32, batch_size=1, threads=1)
        >>> [row] = measure_all(model, [setting], rates=[0.5], patterns=2, rounds=1)
        >>> row.engine, row.patterns, round(row.execution_rate, 2)
        ('skip', 2, 0.33)
    """
    size = model.description.input.size
    flops = count_flops(model.network, size)
    if not flops.gated_blocks:
        raise UserError("the network has no gates: expected one that `aigtool convert` wrote")
    settings = list(settings)
    for setting in settings:
        check_engine(model, setting.engine, setting.device, setting.dtype)
        if images is not None and len(images) < setting.batch_size:
            raise UserError(
                f"data {images.name} has {len(images)} images: expected a batch of "
                f"{setting.batch_size} at least; take a smaller --batch-size"
            )
    for setting in settings:
        label = f"{setting.engine}, batch {setting.batch_size}"
        contest = Contest(model, flops, setting)
        count = patterns or (TOGETHER if setting.batch_size > 1 else ALONE)
        if images is not None:
            batches = _batches(images, setting.batch_size, count)
            decided = [contest.decisions(pixels) for pixels in batches]
            with watch(label, len(batches)) as done:
                yield contest.measure(
                    batches, decided, forced=False, rounds=rounds, seed=seed, progress=done
                )
            continue
        noise = torch.rand(setting.batch_size, *size, generator=torch.Generator().manual_seed(seed))
        for rate in rates:
            told = draw_patterns(
                rate,
                len(flops.gated_blocks),
                batch_size=setting.batch_size,
                count=count,
                seed=seed,
            )
            with watch(f"{label}, rate {rate:g}", count) as done:
                yield contest.measure(
                    [noise], told, forced=True, rounds=rounds, seed=seed, progress=done
                )


def _batches(images: ImageSet, batch_size: int, count: int) -> list[Tensor]:
    chosen = images.limited(batch_size * count)
    batches = (pixels for pixels, _ in load_batches(chosen, batch_size=batch_size))
    return [pixels for pixels in batches if len(pixels) == batch_size]


def _ready(
    engine: Engine, pixels: Tensor, executed: Pattern | None = None
) -> Callable[[], Callable[[], object]]:
    def ready() -> Callable[[], object]:
        engine.decide(None if executed is None else torch.from_numpy(executed))
        return partial(engine, pixels)

    return ready


def _iqr(values: npt.NDArray[np.float64]) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
