"""What images cost: gated blocks and GFLOPs, by class, by answer and by confidence.

The examples' ``trace`` has four images and two gates.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import mannwhitneyu, spearmanr

from aigtool.analysis.rates import class_names, rows_by
from aigtool.trace import ExecutionTrace

QUANTILES = (0.05, 0.5, 0.95)
CONFIDENCE_BINS = 10
CLASS = "class: "
"""What the rows of classes are named by."""


def cost_table(trace: ExecutionTrace) -> pd.DataFrame:
    """Return what images cost: all, those answered right, wrong, and of each class.

    Columns ``images`` (which), ``count``, and of both ``blocks`` and ``gflops`` the mean
    (``_mean``), the standard deviation (``_stdev``) and the 5th, 50th and 95th percentile
    (``_p5``, ``_p50``, ``_p95``). Of a set without an image they are not numbers.

    Example:
        >>> cost_table(trace)[["images", "count", "blocks_mean"]]
                images  count  blocks_mean
        0   all images      4     1.250000
        1        right      3     1.333333
        2        wrong      1     1.000000
        3   class: cat      2     1.000000
        4   class: dog      2     1.500000
    """
    blocks = trace.executed.sum(axis=1)

    def row(name: str, chosen: npt.NDArray[Any]) -> dict[str, Any]:
        return {
            "images": name,
            "count": len(blocks[chosen]),
            **_spread("blocks", blocks[chosen]),
            **_spread("gflops", trace.gflops[chosen]),
        }

    labels = trace.images["label"].to_numpy()
    order = np.argsort(labels, kind="stable")
    names = class_names(trace, np.unique(labels).tolist())
    sets = {"all images": order, "right": trace.correct, "wrong": ~trace.correct}
    rows = [row(name, chosen) for name, chosen in sets.items()]
    rows += [
        row(f"{CLASS}{name}", part)
        for name, part in zip(names, rows_by(labels, order), strict=True)
    ]
    return pd.DataFrame(rows)


def _spread(name: str, values: npt.NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys([f"{name}_mean", f"{name}_stdev", *_percentiles(name)], np.nan)
    quantiles = np.quantile(values, QUANTILES)
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_stdev": float(values.std()),
        **dict(zip(_percentiles(name), quantiles.tolist(), strict=True)),
    }


def _percentiles(name: str) -> list[str]:
    return [f"{name}_p{100 * quantile:g}" for quantile in QUANTILES]


def cost_by_confidence(trace: ExecutionTrace, bins: int = CONFIDENCE_BINS) -> pd.DataFrame:
    """Return what images cost from the least to the most confident answers, in bins of images.

    Bins have as many images as each other, but that answers of one confidence stay together: their
    order means nothing.

    Columns ``low`` and ``high`` (of confidence), ``images``, ``top1`` (percent), ``blocks`` and
    ``gflops`` (means) and their standard errors, which of a single image are not numbers. There are
    fewer bins than asked for where each would have less than two images.

    Example:
        >>> cost_by_confidence(trace, bins=2)[["low", "high", "images", "top1", "blocks"]]
           low  high  images   top1  blocks
        0  0.6   0.7       2   50.0     1.5
        1  0.8   0.9       2  100.0     1.0
    """
    confidence = trace.images["confidence"].to_numpy()
    blocks = trace.executed.sum(axis=1)
    order = np.argsort(confidence, kind="stable")
    ends = np.linspace(0, len(order), max(1, min(bins, len(order) // 2)) + 1)[1:-1].astype(int)
    ends = np.searchsorted(confidence[order], confidence[order][ends])
    parts = np.split(order, np.unique(ends[ends > 0]))
    return pd.DataFrame(
        [
            {
                "low": confidence[part[0]],
                "high": confidence[part[-1]],
                "images": len(part),
                "top1": 100 * trace.correct[part].mean(),
                "blocks": blocks[part].mean(),
                "blocks_stderr": _stderr(blocks[part]),
                "gflops": trace.gflops[part].mean(),
                "gflops_stderr": _stderr(trace.gflops[part]),
            }
            for part in parts
        ]
    )


def _stderr(values: npt.NDArray[Any]) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def cost_of_errors(trace: ExecutionTrace) -> dict[str, Any]:
    """Return whether wrong answers cost more, and whether unsure ones do.

    Classes differ in cost and in difficulty; so the difference is given within classes too: that
    of a linear model with a mean for each class.

    Returns:
        ``wrong`` and ``right`` (counts), ``blocks_wrong`` and ``blocks_right`` (means),
        ``difference`` with ``stderr``, ``difference_within_classes`` with
        ``stderr_within_classes``, ``p`` (two-sided, of Mann and Whitney's test of the blocks), and
        ``spearman_confidence`` with ``spearman_p``: rank correlation of blocks and confidence.
        None where all answers are right or all wrong (of each class, within classes), or all images
        cost alike; an error is None where the difference hangs on a single image.

    Example:
        >>> found = cost_of_errors(trace)
        >>> found["wrong"], round(found["difference"], 3), round(found["p"], 2)
        (1, -0.333, 1.0)
        >>> found["stderr"] is None
        True
    """
    blocks, wrong = trace.executed.sum(axis=1), ~trace.correct
    differs, varies = bool(wrong.any() and not wrong.all()), bool(blocks.std() > 0)
    difference, stderr = _difference(blocks, wrong, np.zeros(len(blocks)))
    inside, inside_stderr = _difference(blocks, wrong, trace.images["label"].to_numpy())
    confidence = trace.images["confidence"].to_numpy()
    ranked = spearmanr(blocks, confidence) if varies and confidence.std() > 0 else None
    found = {
        "blocks_wrong": blocks[wrong].mean() if wrong.any() else None,
        "blocks_right": blocks[~wrong].mean() if not wrong.all() else None,
        "difference": difference,
        "stderr": stderr,
        "difference_within_classes": inside,
        "stderr_within_classes": inside_stderr,
        "p": mannwhitneyu(blocks[wrong], blocks[~wrong]).pvalue if differs and varies else None,
        "spearman_confidence": None if ranked is None else ranked.statistic,
        "spearman_p": None if ranked is None else ranked.pvalue,
    }
    plain = {name: None if value is None else float(value) for name, value in found.items()}
    return {"wrong": int(wrong.sum()), "right": int((~wrong).sum()), **plain}


def _difference(
    values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_], groups: npt.NDArray[Any]
) -> tuple[float | None, float | None]:
    """Return by how much those chosen are above the others of their group, with its error.

    By least squares, with a mean for each group; the error is HC2 of MacKinnon and White (1985),
    which with one group is Welch's.
    """
    frame = pd.DataFrame({"value": values, "chosen": chosen}, dtype=float)
    by_group = frame.groupby(groups)
    centred = frame - by_group.transform("mean")
    weight = (centred["chosen"] ** 2).sum()
    if not weight:
        return None, None
    difference = (centred["chosen"] * centred["value"]).sum() / weight
    told = centred[centred["chosen"] != 0]
    sizes = by_group["chosen"].transform("size")[told.index]
    room = 1 - 1 / sizes - told["chosen"] ** 2 / weight
    if room.min() < _ROOM:
        return difference, None
    rest = told["value"] - difference * told["chosen"]
    variance = ((told["chosen"] * rest) ** 2 / room).sum() / weight**2
    return difference, float(np.sqrt(variance))


_ROOM = 1e-9
"""Less than this is left of one by a leverage of one: the model only copies that image's value."""
