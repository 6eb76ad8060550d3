"""What a trace says, in figures: what ``analysis.json`` holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from aigtool.analysis.clustering import find_groups
from aigtool.analysis.costs import cost_of_errors
from aigtool.analysis.groups import compare_given
from aigtool.analysis.permutation import GroupTest
from aigtool.analysis.rates import class_names, undecided_gates
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace


def findings(
    trace: ExecutionTrace,
    groups: Mapping[str, Sequence[str]] | None = None,
    *,
    clusters: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the headline figures, whether groups of classes part, and whether errors cost more.

    Args:
        trace: Of a network with gates.
        groups: Names of classes by the name of their group, to be tested too.
        clusters: How many groups to find; by default as many as part the classes best.
        seed: Of what is drawn.

    Returns:
        What ``ExecutionTrace.summary`` says, and ``data``,
        ``undecided_gates``, ``errors`` (``cost_of_errors``),
        ``found_groups`` and, where groups are given, ``given_groups``: their ``members``, and the
        test's ``between``, ``within``, ``ratio``, ``p``, ``least_p``, ``labelings`` and
        ``enumerated``. Where classes are too few to be parted, ``reason`` says so instead.

    Example:
        >>> found = findings(trace)
        >>> found["found_groups"]
        {'reason': 'groups of 2 classes with at least two images: expected three or more'}
    """
    given = {} if groups is None else {"given_groups": _given(trace, groups)}
    return {
        "data": trace.source,
        **trace.summary(),
        "undecided_gates": undecided_gates(trace),
        "errors": cost_of_errors(trace),
        "found_groups": _found(trace, clusters, seed),
        **given,
    }


def _found(trace: ExecutionTrace, clusters: int | None, seed: int) -> dict[str, Any]:
    try:
        found = find_groups(trace, clusters, seed=seed)
    except UserError as error:
        if clusters is not None:
            raise
        return {"reason": str(error)}
    names = class_names(trace, found.classes)
    members = [
        [name for name, group in zip(names, found.groups, strict=True) if group == number]
        for number in range(max(found.groups) + 1)
    ]
    return {"members": members, **_tested(found.test)}


def _given(trace: ExecutionTrace, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    members = {name: [*names] for name, names in groups.items()}
    try:
        return {"members": members, **_tested(compare_given(trace, groups))}
    except UserError as error:
        return {"members": members, "reason": str(error)}


def _tested(test: GroupTest) -> dict[str, Any]:
    ratio = test.ratio if isfinite(test.ratio) else None  # of groups that do not differ within
    return {**asdict(test), "ratio": ratio}


def tell_groups(tested: Mapping[str, Any]) -> str:
    """Say how far groups part, and whether chance would part them as far.

    Args:
        tested: ``found_groups`` or ``given_groups`` of what ``findings`` returned.

    Example:
        >>> tested = {"between": 0.3, "within": 0.2, "ratio": 1.5, "p": 0.2}
        >>> tested |= {"least_p": 0.005, "labelings": 200}
        >>> tell_groups(tested)
        '1.50 times as far from each other as within (p 0.2 of 200 labelings)'
        >>> tell_groups(tested | {"within": 0.0, "ratio": None, "p": 0.005})
        '0.30 apart, where 1 is the most, and alike within (p 0.005 of 200 labelings, the \
smallest that they can give)'
        >>> tell_groups(tested | {"p": 2 / 3, "least_p": 1 / 3, "labelings": 3})
        '1.50 times as far from each other as within (p 0.667 of 3 labelings, too few to tell: \
they give no p under 0.333)'
        >>> tell_groups({"reason": "too few classes"})
        'too few classes'
    """
    if "reason" in tested:
        return str(tested["reason"])
    if tested["ratio"] is None:
        apart = f"{tested['between']:.2f} apart, where 1 is the most, and alike within"
    elif not tested["between"] and not tested["within"]:
        return "not apart: all their classes execute the same"
    else:
        apart = f"{tested['ratio']:.2f} times as far from each other as within"
    chance = f"p {tested['p']:.3g} of {tested['labelings']} labelings"
    if tested["least_p"] > 0.05:
        chance += f", too few to tell: they give no p under {tested['least_p']:.3g}"
    elif tested["p"] <= tested["least_p"]:
        chance += ", the smallest that they can give"
    return f"{apart} ({chance})"


ASKED = {
    "found_groups": "They are of one half of each class's images, tested on the other, so they may "
    "differ from the tree beside the heatmap. Their p says whether classes differ, not whether "
    "they form groups: class labels permuted among images are clustered and tested alike.",
    "given_groups": "Their p says whether other groups of these classes would part as far.",
}
"""What the tests of groups ask, by their key in ``analysis.json``."""


def tell_errors(errors: Mapping[str, Any]) -> str:
    """Say by how much wrong answers take more blocks; nothing where all are right, or all wrong.

    Args:
        errors: ``errors`` of what ``findings`` returned.

    Example:
        >>> tell_errors(findings(trace)["errors"])
        '1, which take -0.33 blocks more than right ones; +0.00 within classes, of too few to \
say how surely'
        >>> errors = {"wrong": 41, "difference": 0.955, "stderr": 0.17}
        >>> errors |= {"difference_within_classes": None, "stderr_within_classes": None}
        >>> tell_errors(errors)
        '41, which take +0.95 ± 0.17 blocks more than right ones; no class has both'
    """
    if errors["difference"] is None:
        return ""
    told = f"{errors['wrong']}, which take {_surely(errors['difference'], errors['stderr'])} blocks"
    within, stderr = errors["difference_within_classes"], errors["stderr_within_classes"]
    inside = "no class has both" if within is None else f"{_surely(within, stderr)} within classes"
    few = ", of too few to say how surely" if None in (errors["stderr"], stderr) else ""
    return f"{told} more than right ones; {inside}{few * (within is not None)}"


def _surely(value: float, stderr: float | None) -> str:
    return f"{value:+.2f}" if stderr is None else f"{value:+.2f} ± {stderr:.2f}"
