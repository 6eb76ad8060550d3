"""Wilson intervals: those of scipy, and how often they hold the true share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from aigtool.intervals import mcnemar, wilson_interval


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_they_are_those_of_scipy(trials: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx(expected, abs=1e-9)


def test_of_no_image_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0, 1)


@pytest.mark.parametrize("trials", [5, 20, 100, 1000])
def test_they_hold_the_true_share_as_often_as_they_say(trials: int) -> None:
    """Exactly, by the binomial distribution: within a point of 95 % on average over shares."""
    counts = np.arange(trials + 1)
    low, high = wilson_interval(counts, trials)
    shares = np.linspace(0.0005, 0.9995, 1000)[:, None]
    held = (low <= shares) & (shares <= high)
    coverage = (binom.pmf(counts, trials, shares) * held).sum(1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.83  # next to 0 and 1, as is known of it


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_got_right(
    pairs: list[tuple[bool, bool]],
) -> None:
    ours, theirs = (np.array([pair[i] for pair in pairs], bool) for i in (0, 1))
    more, fewer, p = mcnemar(ours, theirs)
    assert more == sum(a and not b for a, b in pairs)
    assert fewer == sum(b and not a for a, b in pairs)
    expected = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert p == pytest.approx(expected)
