"""What ``aigtool attack`` leaves behind."""

from pathlib import Path
from typing import Any

import pandas as pd

from aigtool.output import replacing, write_json
from aigtool.robustness.plots import robustness_figure


def write_attack(rows: pd.DataFrame, folder: str | Path, about: str) -> list[Path]:
    """Write the rows of ``attack_accuracy`` as CSV and JSON, and their curves.

    Args:
        rows: What ``attack_accuracy`` returned.
        folder: Where to.
        about: The data and its size.

    Returns:
        The files written.
    """
    table, record, figure = (Path(folder) / f"attack.{kind}" for kind in ("csv", "json", "png"))
    with replacing(table) as temporary:
        rows.to_csv(temporary, index=False)
    write_json(record, {"data": about, "rows": records(rows)})
    with replacing(figure) as temporary:
        robustness_figure(rows, about).savefig(temporary)
    return [table, record, figure]


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain dicts, with None where there is no value.

    Example:
        >>> records(pd.DataFrame({"quality": [75, None]}, dtype="Int64"))
        [{'quality': 75}, {'quality': None}]
    """
    plain = rows.astype(object).where(rows.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]
