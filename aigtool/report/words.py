"""Numbers as the page writes them."""

import math
from typing import Any

from aigtool.intervals import wilson_interval

UNKNOWN = "not measured"


def is_known(value: Any) -> bool:
    """Whether a number was measured.

    Example:
        >>> is_known(0.0), is_known(None), is_known(float("nan"))
        (True, False, False)
    """
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def number(value: Any, form: str = ".4g", unit: str = "") -> str:
    """Write a number, or that it was not measured.

    Example:
        >>> number(0.0409), number(12.34, ".1f", " %"), number(None)
        ('0.0409', '12.3 %', 'not measured')
    """
    return f"{value:{form}}{unit}" if is_known(value) else UNKNOWN


def measured(value: Any, stderr: Any = None, form: str = ".2f", unit: str = "") -> str:
    """Write a number, with its standard error where there is one.

    Example:
        >>> measured(16.125, 0.171), measured(16.125)
        ('16.12 ± 0.17', '16.12')
    """
    error = f" ± {stderr:{form}}" if is_known(value) and is_known(stderr) else ""
    return number(value, form, error + unit)


def percent(value: Any, stderr: Any = None) -> str:
    """Write a percentage, with its standard error where there is one.

    Example:
        >>> percent(97.5, 0.82), percent(97.5)
        ('97.5 ± 0.8 %', '97.5 %')
    """
    return measured(value, stderr, ".1f", " %")


def share(value: Any) -> str:
    """Write a rate of 0..1 in percent.

    Example:
        >>> share(0.6512)
        '65.1 %'
    """
    return percent(100 * value) if is_known(value) else UNKNOWN


def counted(count: Any, total: Any) -> str:
    """Write a count of a total.

    Example:
        >>> counted(1351, 1360)
        '1,351 of 1,360'
    """
    return f"{count:,.0f} of {total:,.0f}"


def stderr(count: Any, total: Any) -> float:
    """Return the standard error of a share that was counted, in percent.

    Example:
        >>> round(stderr(90, 100), 2)
        3.0
    """
    right = count / total
    return float(100 * (right * (1 - right) / total) ** 0.5)


def interval(count: Any, total: Any) -> str:
    """Write the 95 % Wilson interval of a share that was counted.

    Example:
        >>> interval(351, 360)
        '95.3 to 98.7 %'
    """
    low, high = (100 * float(end) for end in wilson_interval(count, total))
    return f"{low:.1f} to {high:.1f} %"
