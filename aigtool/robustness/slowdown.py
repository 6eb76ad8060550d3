"""What attacks on compute cost: GFLOPs, and milliseconds as the network is served."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from aigtool.conversion import gate_policy, recorded_decisions
from aigtool.errors import UserError
from aigtool.inference.timing import take_turns
from aigtool.robustness.attacks import LINF
from aigtool.robustness.balls import Ball
from aigtool.robustness.cases import Judged
from aigtool.robustness.compute import GOALS, Goal, compute_attack


@dataclass(frozen=True)
class Timed:
    """What to take the times of: networks as they are served, and images.

    Attributes:
        gated: Takes pixels.
        dense: The network before gating, served alike.
        every: Of the images, every which one.
    """

    gated: nn.Module
    dense: nn.Module
    every: int = 1


@dataclass(frozen=True)
class _Case:
    """One attack; with an epsilon of 0, the clean image."""

    goal: Goal
    epsilon: float


@dataclass(frozen=True)
class _Seen:
    """Of each image: the answer, whether it is right, and which blocks were executed."""

    answers: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    executed: npt.NDArray[np.bool_]


_CLEAN = _Case("raise", 0.0)


def attack_compute(
    judged: Judged,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epsilons: Sequence[float],
    goals: Sequence[Goal] = GOALS,
    ball: Ball = LINF,
    steps: int = 20,
    is_eight_bit: bool = False,
    timed: Timed | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Attack what a network executes, and tell what that costs.

    Args:
        judged: The gated network.
        batches: ``(pixels, labels)``.
        epsilons: Above 0.
        goals: As of ``compute_attack``.
        ball: By which norm epsilons are meant.
        steps: Of each attack.
        is_eight_bit: Whether attacked images are rounded to 8 bits, within the ball.
        timed: What to take times of, image by image, clean and attacked ones in turns; no times by
            default.
        progress: Called with the number of images done after each attack on a batch; in all, each
            image counts once a goal and epsilon.

    Returns:
        A row a goal and epsilon: ``gflops_dense``, ``gflops_clean``, ``gflops_attacked`` (means),
        ``gflops_worst`` (of the attacked image that takes most, or least), ``saving_destroyed``
        (what the mean grew by, over what gating saved), ``answers_kept``, ``correct_clean``,
        ``correct``, ``images``, ``execution_rate_clean``, ``execution_rate``; and where times were
        taken ``timed_images`` and, in the mean over them, ``dense_ms``, ``clean_ms``,
        ``attacked_ms``, with ``attacked_p95_ms``.

    Raises:
        UserError: As ``compute_attack``, an epsilon is 0, or the gates do not decide by argmax:
            what is drawn anew each time no image can hold.
    """
    if not can_slow(judged):
        raise UserError("compute attack: expected a network whose gates decide by argmax")
    if not epsilons or 0 in epsilons:
        raise UserError("compute attack: expected epsilons above 0, such as 2/255")
    cases = [_Case(goal, epsilon) for goal in goals for epsilon in sorted({*epsilons})]
    seen: dict[_Case, list[_Seen]] = {case: [] for case in (_CLEAN, *cases)}
    kept: dict[_Case, list[Tensor]] = {case: [] for case in seen}
    costs = np.array([block.skippable for block in judged.flops.gated_blocks])
    first = 0
    for given, known in batches:
        pixels, labels = (tensor.to(judged.network.mean.device) for tensor in (given, known))
        with gate_policy(judged.network, judged.policy):
            found: dict[Goal, Tensor] = {}  # within the largest ball so far
            for case, looks in seen.items():
                moved = pixels
                if case.epsilon:
                    moved = compute_attack(
                        judged.network,
                        pixels,
                        costs,
                        epsilon=case.epsilon,
                        goal=case.goal,
                        ball=ball,
                        steps=steps,
                        known=found.get(case.goal),
                    )
                    found[case.goal] = moved
                    progress(len(labels))
                if case.epsilon and is_eight_bit:
                    moved = ball.rounded(pixels, moved, case.epsilon)
                looks.append(_look(judged, moved, labels))
                if timed:
                    kept[case].append(moved[-first % timed.every :: timed.every].clone())
        first += len(labels)
    whole = {case: _joined(looks) for case, looks in seen.items()}
    times = _times(timed, {case: torch.cat(parts) for case, parts in kept.items()}) if timed else {}
    rows = []
    for case in cases:
        row = {"goal": case.goal, "norm": ball.norm, "steps": steps, "epsilon": case.epsilon}
        rows.append(row | _costs(judged, whole[_CLEAN], whole[case], case.goal))
        if times:
            rows[-1] |= _milliseconds(times["dense"], times[_CLEAN], times[case])
    return pd.DataFrame(rows)


def can_slow(judged: Judged) -> bool:
    """Whether a network's gates decide by the image alone, so that an image can turn them."""
    return judged.decides and judged.policy == "argmax"


def _look(judged: Judged, pixels: Tensor, labels: Tensor) -> _Seen:
    with torch.inference_mode(), recorded_decisions(judged.network) as decisions:
        answers = judged.network(pixels).argmax(1)
        executed = torch.stack([one.scale > 0 for one in decisions.values()], 1)
    right = answers == labels
    return _Seen(*(tensor.cpu().numpy() for tensor in (answers, right, executed)))


def _joined(parts: Sequence[_Seen]) -> _Seen:
    names = ("answers", "right", "executed")
    return _Seen(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _costs(judged: Judged, before: _Seen, after: _Seen, goal: Goal) -> dict[str, Any]:
    clean, attacked = (judged.flops.executed(s.executed, judged.policy) for s in (before, after))
    saved = judged.flops.gflops_dense - clean.mean()
    return {
        "images": len(clean),
        "gflops_dense": judged.flops.gflops_dense,
        "gflops_clean": float(clean.mean()),
        "gflops_attacked": float(attacked.mean()),
        "gflops_worst": float(attacked.max() if goal == "raise" else attacked.min()),
        "saving_destroyed": float((attacked.mean() - clean.mean()) / saved) if saved > 0 else None,
        "answers_kept": float((before.answers == after.answers).mean()),
        "correct_clean": int(before.right.sum()),
        "correct": int(after.right.sum()),
        "execution_rate_clean": float(before.executed.mean()),
        "execution_rate": float(after.executed.mean()),
    }


def _milliseconds(
    dense: npt.NDArray[np.float64],
    clean: npt.NDArray[np.float64],
    attacked: npt.NDArray[np.float64],
) -> dict[str, Any]:
    return {
        "timed_images": len(attacked),
        "dense_ms": float(dense.mean()),
        "clean_ms": float(clean.mean()),
        "attacked_ms": float(attacked.mean()),
        "attacked_p95_ms": float(np.quantile(attacked, 0.95)),
    }


def _times(timed: Timed, images: Mapping[_Case, Tensor]) -> dict[Any, npt.NDArray[np.float64]]:
    """Return milliseconds, image by image, of the dense network and of each kind of images."""
    served: dict[Any, tuple[nn.Module, Tensor]] = {"dense": (timed.dense, images[_CLEAN])}
    served |= {case: (timed.gated, pixels) for case, pixels in images.items()}
    count = len(images[_CLEAN])

    def call(network: nn.Module, pixels: Tensor) -> Callable[[], Callable[[], object]]:
        turn = iter(range(count))

        def ready() -> Callable[[], object]:
            image = pixels[(i := next(turn)) : i + 1]
            return lambda: network(image).argmax().item()  # waits for the result

        return ready

    with torch.inference_mode():
        for network, pixels in served.values():
            network(pixels[:1])
        return take_turns({key: call(*one) for key, one in served.items()}, count)
