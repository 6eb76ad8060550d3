"""What attacks left, as rows: accuracies with intervals and pairs, and what gates did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from aigtool.intervals import mcnemar, wilson_interval
from aigtool.robustness.cases import Case, Judged, Robustness

ALL = "all"
"""The group of all images."""
SIGNIFICANT = 0.05


def accuracy_rows(found: Robustness) -> pd.DataFrame:
    """Return a row a case, with the columns of ``aigtool attack --json``.

    Args:
        found: What ``attack_networks`` counted.

    Returns:
        The columns of ``Case``, and

        - ``target``, ``hits``, ``aimed``: of targeted attacks, what was wanted, and how many of the
          images whose label is another got it;
        - ``correct``, ``images``, ``top1``, ``top1_low``, ``top1_high``: with its 95 % Wilson
          interval, in percent;
        - ``clean_right``, ``correct_of_clean_right``, ``top1_of_clean_right``: of the images that
          were right before the attack, behind the same defence;
        - ``difference``, ``difference_stderr``, ``mcnemar_p``: to the last network in the same
          case, in points of top-1, paired by image;
        - ``doubt``: whether an attack that knows of the defence leaves more than one that does not,
          by more than chance (McNemar, 5 %): it may have no gradient to follow;
        - ``execution_rate``, ``gflops_executed``, and ``gate_agreement``: the share of decisions
          that equal those on the clean image without a defence.
    """
    right = {case: np.concatenate(tally.right) for case, tally in found.tallies.items()}
    clean = {key: np.concatenate(parts) for key, parts in found.clean.items()}
    *_, reference = found.networks
    rows = []
    for case, tally in found.tallies.items():
        ours = right[case]
        before = clean[case.network, case.defense, case.quality]
        low, high = wilson_interval(ours.sum(), len(ours))
        judged = found.networks[case.network]
        rows.append(
            {
                **asdict(case),
                "target": found.target,
                "hits": tally.hits if found.target is not None else None,
                "aimed": tally.aimed if found.target is not None else None,
                "correct": int(ours.sum()),
                "images": len(ours),
                "top1": 100 * float(ours.mean()),
                "top1_low": 100 * float(low),
                "top1_high": 100 * float(high),
                "clean_right": int(before.sum()),
                "correct_of_clean_right": int((ours & before).sum()),
                "top1_of_clean_right": _percent(int((ours & before).sum()), int(before.sum())),
                **_paired(case, right, reference),
                "doubt": _is_doubtful(case, right),
                "execution_rate": _share(tally.executed, judged, len(ours)),
                "gflops_executed": tally.gflops / len(ours),
                "gate_agreement": _share(tally.agreeing, judged, len(ours))
                if judged.decides
                else None,
            }
        )
    return pd.DataFrame(rows).astype({"quality": "Int64", "steps": "Int64", "hits": "Int64"})


def _paired(case: Case, right: Mapping[Case, Any], reference: str) -> dict[str, float | None]:
    names = ("difference", "difference_stderr", "mcnemar_p")
    beside = replace(case, network=reference)
    # A reference without gates that decide is attacked once, whatever others' gates show.
    other = right.get(beside, right.get(replace(beside, gate_gradient=None)))
    if case.network == reference or other is None:
        return dict.fromkeys(names)
    ours = right[case]
    apart = 100 * (ours.astype(float) - other)
    p = mcnemar(ours, other)[2]
    return dict(zip(names, (apart.mean(), apart.std() / len(ours) ** 0.5, p), strict=True))


def _is_doubtful(case: Case, right: Mapping[Case, Any]) -> bool:
    unaware = right.get(replace(case, attacker="static"))
    if case.attacker != "adaptive" or not case.epsilon or unaware is None:
        return False
    more, fewer, p = mcnemar(right[case], unaware)
    return more > fewer and p < SIGNIFICANT


def _percent(count: int, total: int) -> float | None:
    return 100 * count / total if total else None


def _share(counts: Any, judged: Judged, images: int) -> float | None:
    decisions = images * len(judged.flops.gated_blocks)
    return float(counts.sum()) / decisions if decisions else None


def gate_rows(found: Robustness, groups: Mapping[str, Sequence[int]] | None = None) -> pd.DataFrame:
    """Return what each gate did in each case: a row a case, a group of classes and a gate.

    Args:
        found: What ``attack_networks`` counted.
        groups: Labels by name; all images are a group of their own besides.

    Returns:
        The columns of ``Case``, ``group``, ``gate``, ``images``, ``execution_rate``, with its 95 %
        Wilson interval, and ``gate_agreement``; no row for networks whose gates do not decide.
    """
    labels = np.bincount(found.labels)
    members = {ALL: list(range(len(labels))), **(groups or {})}
    tables = []
    for case, tally in found.tallies.items():
        judged = found.networks[case.network]
        if not judged.decides or tally.executed is None or tally.agreeing is None:
            continue
        for group, classes in members.items():
            present = [label for label in classes if label < len(labels)]
            images = int(labels[present].sum())
            if not images:
                continue
            executed = tally.executed[present].sum(0)
            low, high = wilson_interval(executed, images)
            tables.append(
                pd.DataFrame(
                    {
                        **asdict(case),
                        "group": group,
                        "gate": [block.name for block in judged.flops.gated_blocks],
                        "images": images,
                        "execution_rate": executed / images,
                        "execution_rate_low": low,
                        "execution_rate_high": high,
                        "gate_agreement": tally.agreeing[present].sum(0) / images,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def group_rows(gates: pd.DataFrame) -> pd.DataFrame:
    """Return what the gates of each case did on average, a row a group of classes.

    Args:
        gates: Of ``gate_rows``.
    """
    if gates.empty:
        return gates
    means = {"images": "first", "execution_rate": "mean", "gate_agreement": "mean"}
    keys = [*(f.name for f in fields(Case)), "group"]
    grouped = gates.groupby(keys, dropna=False, sort=False, as_index=False)
    rows: pd.DataFrame = grouped.agg(means)
    return rows
