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
    """Return what images cost from the least to the most confident answers, in equal shares.

    Columns ``low`` and ``high`` (of confidence), ``images``, ``top1`` (percent), ``blocks`` and
    ``gflops`` (means) and their standard errors. There are fewer bins than asked for where
    there are fewer images.

    Example:
        >>> cost_by_confidence(trace, bins=2)[["low", "high", "images", "top1", "blocks"]]
           low  high  images   top1  blocks
        0  0.6   0.7       2   50.0     1.5
        1  0.8   0.9       2  100.0     1.0
    """
    confidence = trace.images["confidence"].to_numpy()
    blocks = trace.executed.sum(axis=1)
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))
    return pd.DataFrame(
        [
            {
                "low": confidence[part[0]],
                "high": confidence[part[-1]],
                "images": len(part),
                "top1": 100 * trace.correct[part].mean(),
                "blocks": blocks[part].mean(),
                "blocks_stderr": blocks[part].std() / np.sqrt(len(part)),
                "gflops": trace.gflops[part].mean(),
                "gflops_stderr": trace.gflops[part].std() / np.sqrt(len(part)),
            }
            for part in parts
        ]
    )


def cost_of_errors(trace: ExecutionTrace) -> dict[str, Any]:
    """Return whether wrong answers cost more, and whether unsure ones do.

    Classes differ in cost and in difficulty; so the difference is given within classes too, where
    each image is compared with the mean of its class.

    Returns:
        ``wrong`` and ``right`` (counts), ``blocks_wrong`` and ``blocks_right`` (means),
        ``difference`` with ``stderr``, ``difference_within_classes`` with
        ``stderr_within_classes``, ``p`` (two-sided, of Mann and Whitney's test of the blocks), and
        ``spearman_confidence`` with ``spearman_p``: rank correlation of blocks and confidence.
        None where all answers are right or all wrong, or all images cost alike.

    Example:
        >>> found = cost_of_errors(trace)
        >>> found["wrong"], round(found["difference"], 3), round(found["p"], 2)
        (1, -0.333, 1.0)
    """
    blocks, wrong = trace.executed.sum(axis=1), ~trace.correct
    frame = pd.DataFrame({"label": trace.images["label"].to_numpy(), "blocks": blocks})
    within = blocks - frame.groupby("label")["blocks"].transform("mean").to_numpy()
    differs, varies = bool(wrong.any() and not wrong.all()), bool(blocks.std() > 0)
    difference, stderr = _difference(blocks, wrong) if differs else (None, None)
    inside, inside_stderr = _difference(within, wrong) if differs else (None, None)
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


def _difference(values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return by how much the mean of those chosen is above that of the others, with its error."""
    parts = values[chosen], values[~chosen]
    variance = sum(part.var() / len(part) for part in parts)
    return parts[0].mean() - parts[1].mean(), np.sqrt(variance)
