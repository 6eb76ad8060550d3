"""What ``aigtool bench`` leaves behind."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from aigtool.inference.benchmark import Row
from aigtool.inference.plots import bench_figure
from aigtool.output import replacing


def write_bench(rows: Sequence[Row], folder: str | Path, network: str) -> list[Path]:
    """Write what ``measure_all`` measured as CSV and as a figure.

    Args:
        rows: What was measured.
        folder: Where to.
        network: Its name, the figure's title.

    Returns:
        The files written.
    """
    table, figure = (Path(folder) / f"bench.{kind}" for kind in ("csv", "png"))
    with replacing(table) as temporary:
        pd.DataFrame(map(asdict, rows)).to_csv(temporary, index=False)
    with replacing(figure) as temporary:
        bench_figure(rows, network).savefig(temporary)
    return [table, figure]
