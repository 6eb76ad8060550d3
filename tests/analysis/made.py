"""Traces that were made, of classes whose rates are known."""

import numpy as np

from aigtool.trace import ExecutionTrace
from tests.analysis.test_rates import make_trace


def traced(rates: np.ndarray, images: int, seed: int) -> ExecutionTrace:
    """Return a trace of so many images of each class, with these rates ``(classes, gates)``."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(rates)), images))
    executed = random.random((len(labels), rates.shape[1])) < rates[labels]
    return make_trace(executed, labels, np.zeros(len(labels), int), len(rates))


def planted(classes: int = 10, gates: int = 12) -> tuple[np.ndarray, list[int]]:
    """Return rates of two groups, of four and of the other classes, and the groups."""
    groups = [0, 1, 1, 0, 1, 1, 0, *[1] * (classes - 8), 0]
    rates = np.where(np.array(groups)[:, None] == np.arange(gates) % 2, 0.7, 0.3)
    return rates, groups


def often(ps: list[float], level: float) -> float:
    """Return the share of p-values at or under a level, less three standard errors of it."""
    return float(np.mean(np.array(ps) <= level)) - 3 * (level * (1 - level) / len(ps)) ** 0.5
