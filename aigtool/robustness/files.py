"""What ``aigtool attack`` leaves behind."""

from pathlib import Path

import pandas as pd

from aigtool.output import records, replacing, write_json
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
