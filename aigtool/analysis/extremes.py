"""The easiest and the hardest images: those that took the fewest and the most blocks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from aigtool.analysis.rates import class_names, rows_by
from aigtool.trace import ExecutionTrace


def extreme_images(trace: ExecutionTrace, per_class: int = 6) -> pd.DataFrame:
    """Return the images of each class that executed the fewest and the most gated blocks.

    Of images with as many blocks, the one whose gates were the more inclined to execute counts as
    the harder. An image is never both: of a class with few images fewer are told.

    Args:
        trace: Of a network with gates.
        per_class: Images of each kind.

    Returns:
        A row an image: ``class``, ``kind`` (``fewest`` or ``most``), ``index`` and ``file`` (in the
        data set), ``prediction``, ``right``, ``confidence``, ``blocks``, ``gflops`` and ``skipped``
        (the gates that did not execute, by name with spaces between); the most extreme first.

    Example:
        >>> extreme_images(trace)[["class", "kind", "file", "blocks"]]
          class    kind   file  blocks
        0   cat  fewest  0.png       1
        1   cat    most  1.png       1
        2   dog  fewest  2.png       1
        3   dog    most  3.png       2
    """
    labels = trace.images["label"].to_numpy()
    present = np.unique(labels).tolist()
    blocks = trace.executed.sum(axis=1)
    order = np.lexsort((trace.probability.sum(axis=1), blocks, labels))
    rows: list[dict[str, Any]] = []
    names = class_names(trace, present)
    for own, name in zip(rows_by(labels, order), names, strict=True):
        for kind, chosen in _ends(own, per_class):
            rows += [{"class": name, "kind": kind, "row": row} for row in chosen.tolist()]
    frame = pd.DataFrame(rows)
    chosen = frame.pop("row").to_numpy()
    gates = np.array(trace.gates)
    images = trace.images.iloc[chosen].reset_index(drop=True)
    predicted = class_names(trace, images["prediction"].tolist())
    return frame.assign(
        index=images["index"],
        file=images["file"],
        prediction=predicted,
        right=trace.correct[chosen],
        confidence=images["confidence"],
        blocks=blocks[chosen],
        gflops=trace.gflops[chosen],
        skipped=[" ".join(gates[~executed]) for executed in trace.executed[chosen]],
    )


def _ends(ordered: npt.NDArray[np.intp], count: int) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    few = min(count, (len(ordered) + 1) // 2)
    yield "fewest", ordered[:few]
    yield "most", ordered[::-1][: min(count, len(ordered) - few)]
