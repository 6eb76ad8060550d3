"""Figures of attacks: accuracy over epsilon, what gates did, and attacked images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aigtool.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, head, new_figure, styled
from aigtool.robustness.cases import Case
from aigtool.robustness.pictures import Example
from aigtool.robustness.tables import ALL

_LOOKS = {
    "straight-through": (BLUE, "o", "-"),
    "frozen": (GREEN, "s", "-"),
    "worst": (VERMILION, "v", "--"),
}
"""By gate gradient, of networks whose gates decide."""
_OTHER = (ORANGE, "D", "-")
_BLIND = (BLUE, "o", "-")
"""Of networks whose gates decide, under an attack that sees nothing."""
_GROUPS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9")


def told_defense(row: Any) -> str:
    """Say which defence a row is behind, and whether the attacker knows.

    Example:
        >>> told_defense({"defense": "jpeg", "quality": 75, "attacker": "static"})
        'JPEG 75, attacker unaware'
        >>> told_defense({"defense": "none", "quality": None, "attacker": None})
        'no defence'
    """
    if row["defense"] == "none":
        return "no defence"
    name = f"JPEG {row['quality']:g}" if row["defense"] == "jpeg" else str(row["defense"])
    return f"{name}, attacker {'unaware' if row['attacker'] == 'static' else 'aware'}"


def told_attack(row: Any, target: int | str | None = None) -> str:
    """Say which attack a row is of, and what it wants, if that is told.

    Example:
        >>> told_attack({"attack": "pgd", "steps": 20, "norm": "l2"}, "least-likely")
        'PGD-20, l2, to least-likely'
        >>> told_attack({"attack": "foolbox:PGD", "steps": None, "norm": "linf"})
        'foolbox:PGD'
    """
    name = str(row["attack"])
    name = name if ":" in name or name == "noise" else name.upper()
    steps = f"-{row['steps']:g}" if row["attack"] == "pgd" else ""
    aimed = "" if target is None else f", to {'class ' * isinstance(target, int)}{target}"
    return f"{name}{steps}{', l2' if row['norm'] == 'l2' else ''}{aimed}"


def told_epsilon(epsilon: float, norm: str) -> str:
    """Write an epsilon: in 1/255 where it is of single pixels.

    Example:
        >>> told_epsilon(8 / 255, "linf"), told_epsilon(0.5, "l2"), told_epsilon(0.0, "linf")
        ('8/255', '0.5', '0')
    """
    return f"{255 * epsilon:g}/255" if norm == "linf" and epsilon else f"{epsilon:g}"


@styled
def robustness_figure(
    rows: pd.DataFrame, target: int | str | None = None, about: str = ""
) -> Figure:
    """Draw accuracy over epsilon with 95 % bands: a panel an attack and defence.

    Args:
        rows: What ``accuracy_rows`` returned.
        target: What targeted attacks want for an answer.
        about: Which data, said under the title.
    """
    table = rows.assign(
        panel=[told_attack(row, target) for row in rows.to_dict("records")],
        behind=[told_defense(row) for row in rows.to_dict("records")],
    )
    attacks, defenses = (list(dict.fromkeys(table[name])) for name in ("panel", "behind"))
    grid = [[(attack, defense) for attack in attacks] for defense in defenses]
    if len(attacks) == 1:
        grid = [[(attacks[0], defense) for defense in defenses]]
    across, down = len(grid[0]), len(grid)
    figure = Figure(figsize=(max(5.2, 0.7 + 2.9 * across), 1.3 + 2.4 * down), layout="constrained")
    is_pixels = bool((rows["norm"] == "linf").all())
    panels = figure.subplots(down, across, squeeze=False, sharey=True, sharex=is_pixels)
    named: dict[str, Any] = {}
    for row, line in zip(panels, grid, strict=True):
        for axes, (attack, defense) in zip(row, line, strict=True):
            chosen = table[(table["panel"] == attack) & (table["behind"] == defense)]
            if chosen.empty:
                axes.set_axis_off()
                continue
            named |= _curves(axes, chosen)
            axes.set_title(f"{attack}, {defense}", fontsize=8)
            axes.set_ylim(-2, 102)
    for axes in panels[-1]:
        axes.set_xlabel("epsilon, in 1/255" if is_pixels else "epsilon (l2; linf in 1/255)")
    for axes in panels[:, 0]:
        axes.set_ylabel("top-1 accuracy, %")
    figure.legend(named.values(), named.keys(), loc="outside lower left", ncols=4)
    head(figure, "Accuracy under attack, with 95 % Wilson bands", about)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
    named = {}
    keys = ["network", "gate_gradient"]
    for (network, gradient), part in rows.groupby(keys, dropna=False, sort=False):
        curve = part.sort_values("epsilon")
        decides = curve["gate_agreement"].notna().any()
        color, marker, style = _LOOKS.get(str(gradient), _BLIND if decides else _OTHER)
        x, y = curve["epsilon"] * (255 if curve["norm"].iloc[0] == "linf" else 1), curve["top1"]
        axes.fill_between(x, curve["top1_low"], curve["top1_high"], color=color, alpha=0.1, lw=0)
        (line,) = axes.plot(x, y, color=color, marker=marker, ls=style, ms=4, lw=1.4)
        named[f"{network}, gates {gradient}" if gradient in _LOOKS else str(network)] = line
    return named


@styled
def execution_figure(gates: pd.DataFrame, under: str, about: str = "") -> Figure:
    """Draw each gate's execution rate, clean and attacked, and how often it decides as before.

    Args:
        gates: Of ``gate_rows``, one network and one way to attack it, at 0 and at one epsilon; a
            line of agreement a group.
        under: Which attack that is.
        about: Which data, said under the title.
    """
    whole = gates[gates["group"] == ALL]
    clean, attacked = (whole[(whole["epsilon"] > 0) == late] for late in (False, True))
    names = attacked["gate"].tolist()
    places = np.arange(len(names))
    figure, (rate, same) = _stacked(max(6.4, 1.6 + 0.14 * len(names)), 4.6)
    for part, shift, color, marker, label in (
        (clean, -0.15, GREY, "o", "clean"),
        (attacked, 0.15, VERMILION, "D", "attacked"),
    ):
        spread = [
            part["execution_rate"] - part["execution_rate_low"],
            part["execution_rate_high"] - part["execution_rate"],
        ]
        rate.errorbar(
            places + shift,
            part["execution_rate"],
            yerr=np.clip(spread, 0, None),
            ls="",
            marker=marker,
            ms=4,
            color=color,
            elinewidth=0.8,
            label=label,
        )
    rate.set(ylabel="execution rate", ylim=(-0.04, 1.04))
    rate.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
    groups = gates[gates["epsilon"] > 0].groupby("group", sort=False)
    for number, (group, part) in enumerate(groups):
        color = "black" if group == ALL else _GROUPS[number % len(_GROUPS)]
        label = f"{group} ({part['images'].iloc[0]} images)"
        same.plot(places, part["gate_agreement"], color=color, marker=".", lw=1.2, label=label)
    same.set(ylabel="decides as on\nthe clean image", ylim=(-0.04, 1.04))
    same.set_xticks(places, names, rotation=90, fontsize=6 if len(names) > 40 else 7)
    figure.legend(*same.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    head(figure, f"What gates do under {under}", about)
    return figure


def _stacked(width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(2, 1, sharex=True))


@styled
def examples_figure(
    examples: Sequence[Example],
    case: Case,
    classes: Sequence[str] | None,
    target: int | str | None = None,
    about: str = "",
) -> Figure:
    """Draw images before and after an attack, and between them what was added, magnified.

    Args:
        examples: Some.
        case: How they were attacked.
        classes: Class names in the order of the labels; numbers by default.
        target: What the attack wants for an answer, if it is targeted.
        about: Which data, said under the title.
    """
    told = f"{told_attack(vars(case), target)}, {told_epsilon(case.epsilon, case.norm)}"
    largest = max(float((one.moved - one.pixels).abs().max()) for one in examples) or 1.0
    figure, _ = new_figure(1.5 + 1.25 * len(examples), 4.6, title="", about="")
    figure.clear()
    panels = figure.subplots(3, len(examples), squeeze=False)
    for column, one in zip(panels.T, examples, strict=True):
        change = 0.5 + (one.moved - one.pixels) / (2 * largest)
        for axes, image in zip(column, (one.pixels, change, one.moved), strict=True):
            shown = image.clamp(0, 1).permute(1, 2, 0).numpy()
            axes.imshow(
                shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
        for axes, when in ((column[0], 0), (column[2], 1)):
            answer, sure = one.answers[when], one.confidences[when]
            name = str(answer) if classes is None else classes[answer]
            right = answer == one.label
            axes.set_xlabel(
                f"{name[:14]}\n{100 * sure:.0f} %",
                fontsize=7,
                color="black" if right else VERMILION,
            )
    for axes, name in zip(
        panels[:, 0], ("clean", f"change x{0.5 / largest:.3g}", "attacked"), strict=True
    ):
        axes.set_ylabel(name, fontsize=8)
    seen = f", gates {case.gate_gradient}" if case.gate_gradient else ""
    head(figure, f"{case.network} under {told}{seen}; wrong answers in orange", about)
    return figure
