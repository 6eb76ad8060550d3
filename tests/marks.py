"""Markers of parameters."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def but_slow(values: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Leave some values of a parameter to the marker ``slow``."""
    return [pytest.param(v, marks=[pytest.mark.slow] * (v in slow)) for v in values]
