"""Execution rates as tables: pure functions of traces.

The examples' ``trace`` has four images and two gates.
"""

import numpy as np
import pandas as pd

from aigtool.trace import ExecutionTrace


def gate_rates(trace: ExecutionTrace) -> pd.DataFrame:
    """Return a row a gate: ``gate``, counts ``executed`` and ``images``, ``rate``, ``probability``.

    Example:
        >>> gate_rates(trace)
            gate  executed  images  rate  probability
        0  first         4       4  1.00         0.75
        1   last         1       4  0.25         0.75
    """
    return pd.DataFrame(
        {
            "gate": trace.gates,
            "executed": trace.executed.sum(axis=0),
            "images": len(trace.executed),
            "rate": trace.executed.mean(axis=0),
            "probability": trace.probability.mean(axis=0),
        }
    )


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
    frame = pd.DataFrame(trace.executed, columns=list(trace.gates))
    rates = frame.groupby(trace.images["label"].to_numpy()).mean()
    names = trace.classes
    rates.index = [str(label) if names is None else names[label] for label in rates.index]
    return rates


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
