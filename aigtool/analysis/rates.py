"""Execution rates as tables: pure functions of traces.

The examples' ``trace`` has four images and two gates.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from aigtool.intervals import wilson_interval
from aigtool.trace import ADAPTIVE, ExecutionTrace

ALIKE = 1e-4
"""Probabilities that differ by less are one."""
KINDS = ("always on", "adaptive", "always off")


def gate_rates(trace: ExecutionTrace) -> pd.DataFrame:
    """Return a row a gate: how often it executes its block, and how much classes differ in that.

    Columns ``gate``, ``stage``, ``downsamples`` and ``last`` (whether its block does, and is its
    stage's last), counts ``executed`` and ``images``, ``rate`` with its 95 % Wilson interval
    ``low`` to ``high``, ``probability`` (the mean), ``kind`` (one of ``KINDS``), and over classes
    ``class_min``, ``class_max`` and ``class_stdev``.

    Example:
        >>> gate_rates(trace)[["gate", "executed", "images", "rate", "kind", "class_max"]]
            gate  executed  images  rate       kind  class_max
        0  first         4       4  1.00  always on        1.0
        1   last         1       4  0.25   adaptive        0.5
    """
    executed, images = trace.executed.sum(axis=0), len(trace.executed)
    rate = trace.executed.mean(axis=0)
    low, high = wilson_interval(executed, images)
    by_class = class_rates(trace).to_numpy()
    last = {stage_of(block.name): block.name for block in trace.flops.blocks}.values()
    return pd.DataFrame(
        {
            "gate": trace.gates,
            "stage": [stage_of(name) for name in trace.gates],
            "downsamples": [block.downsamples for block in trace.flops.gated_blocks],
            "last": [name in last for name in trace.gates],
            "executed": executed,
            "images": images,
            "rate": rate,
            "low": low,
            "high": high,
            "probability": trace.probability.mean(axis=0),
            "kind": np.select([rate >= ADAPTIVE[1], rate > ADAPTIVE[0]], KINDS[:2], KINDS[2]),
            "class_min": by_class.min(axis=0),
            "class_max": by_class.max(axis=0),
            "class_stdev": by_class.std(axis=0),
        }
    )


def undecided_gates(trace: ExecutionTrace) -> list[str]:
    """Return the gates that execute some images and not others, though all look alike to them.

    Their probability is the same for all images, next to the threshold: what they do is rounding,
    and would be another on another machine. Under the policy ``sampled`` it is meant to be drawn.

    Example:
        >>> undecided_gates(trace)
        ['last']
    """
    executed = trace.executed.any(axis=0) & ~trace.executed.all(axis=0)
    alike = np.ptp(trace.probability, axis=0) < ALIKE
    return [] if trace.policy == "sampled" else [*np.array(trace.gates)[executed & alike].tolist()]


def class_rates(trace: ExecutionTrace) -> pd.DataFrame:
    """Return a row a class, a column a gate: the share of the class's images that execute it.

    Classes without an image are left out; the index has their names, or labels where names are
    not known.

    Example:
        >>> class_rates(trace)
             first  last
        cat    1.0   0.0
        dog    1.0   0.5
    """
    labels, codes = np.unique(trace.images["label"].to_numpy(), return_inverse=True)
    executed = sums_by(codes, trace.executed.astype(np.float32), len(labels))
    rates = executed / np.bincount(codes)[:, None]
    return pd.DataFrame(rates, index=class_names(trace, labels.tolist()), columns=trace.gates)


def class_table(trace: ExecutionTrace) -> pd.DataFrame:
    """Return the same with counts, a row a class and gate, and 95 % Wilson intervals.

    Example:
        >>> class_table(trace).round(2).tail(2)
          class   gate  executed  images  rate   low  high
        2   dog  first         2       2   1.0  0.34  1.00
        3   dog   last         1       2   0.5  0.09  0.91
    """
    labels, codes = np.unique(trace.images["label"].to_numpy(), return_inverse=True)
    executed = sums_by(codes, trace.executed.astype(np.float32), len(labels)).astype(int)
    images = np.broadcast_to(np.bincount(codes)[:, None], executed.shape)
    low, high = wilson_interval(executed, images)
    names = class_names(trace, labels.tolist())
    return pd.DataFrame(
        {
            "class": np.repeat(names, len(trace.gates)),
            "gate": np.tile(trace.gates, len(names)),
            "executed": executed.ravel(),
            "images": images.ravel(),
            "rate": (executed / images).ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
        }
    )


def blocks_executed(trace: ExecutionTrace) -> pd.DataFrame:
    """Return how many images executed each number of gated blocks, right and wrong answers apart.

    Example:
        >>> blocks_executed(trace)
           blocks  right  wrong  images
        0       0      0      0       0
        1       1      2      1       3
        2       2      1      0       1
    """
    counts = trace.executed.sum(axis=1)
    bins = np.arange(len(trace.gates) + 1)
    right = np.bincount(counts[trace.correct], minlength=len(bins))
    wrong = np.bincount(counts[~trace.correct], minlength=len(bins))
    return pd.DataFrame({"blocks": bins, "right": right, "wrong": wrong, "images": right + wrong})


def stage_of(block: str) -> str:
    """Return the name of the stage that a block is in: that of what holds it.

    Example:
        >>> stage_of("layer3.0"), stage_of("stages.1.blocks.0")
        ('layer3', 'stages.1.blocks')
    """
    return block.rpartition(".")[0]


def stage_rows(blocks: Sequence[str]) -> list[list[int]]:
    """Return blocks in rows to be drawn, a stage a row, or several where one is long.

    Args:
        blocks: Their names, in order.

    Returns:
        The positions of each row's.

    Example:
        >>> stage_rows(["layer1.0", "layer1.1", "layer2.0"])
        [[0, 1], [2]]
    """
    stages = groupby(range(len(blocks)), key=lambda at: stage_of(blocks[at]))
    lines = [[*places] for _, places in stages]
    return [line[at : at + _ROW] for line in lines for at in range(0, len(line), _ROW)]


_ROW = 18
"""Blocks of a stage that are drawn side by side."""


def class_names(trace: ExecutionTrace, labels: Sequence[int]) -> list[str]:
    """Return the names of labels, or the labels themselves where names are not known.

    Example:
        >>> class_names(trace, [1])
        ['dog']
    """
    names = trace.classes
    return [str(label) if names is None else names[label] for label in labels]


def rows_by(
    labels: npt.NDArray[np.integer], order: npt.NDArray[np.intp]
) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each label, from the lowest label to the highest.

    Args:
        labels: ``(images,)``.
        order: Rows in an order by label; within one it is kept.

    Example:
        >>> labels = np.array([3, 1, 3])
        >>> [rows.tolist() for rows in rows_by(labels, np.argsort(labels, kind="stable"))]
        [[1], [0, 2]]
    """
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def sums_by(
    codes: npt.NDArray[np.intp], values: npt.NDArray[np.floating], count: int
) -> npt.NDArray[np.float64]:
    """Return the sum of the rows of each code.

    Args:
        codes: ``(images,)``, 0 to ``count - 1``.
        values: ``(images, columns)``; counts of up to 16 million are exact in float32.
        count: Of codes.

    Returns:
        ``(count, columns)``.

    Example:
        >>> sums_by(np.array([0, 2, 0]), np.array([[1.0], [2.0], [3.0]]), 3).tolist()
        [[4.0], [0.0], [2.0]]
    """
    rows = np.arange(len(codes) + 1)
    ones = np.ones(len(codes), values.dtype)
    one_hot = csr_array((ones, codes, rows), shape=(len(codes), count))
    sums: npt.NDArray[np.float64] = (one_hot.T @ values).astype(np.float64)
    return sums
