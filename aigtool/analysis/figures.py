"""Every figure of a trace as a file, with the numbers behind it."""

from pathlib import Path

from aigtool.analysis.plots import blocks_histogram, class_heatmap, gate_bars
from aigtool.analysis.rates import blocks_executed, class_rates, gate_rates
from aigtool.errors import UserError
from aigtool.output import replacing
from aigtool.trace import ExecutionTrace

MOST_ROWS = 100
"""Of more classes than these, the picture shows bands; the table has each of them."""


def write_figures(trace: ExecutionTrace, folder: str | Path) -> list[Path]:
    """Write each figure of a trace as PNG and its numbers as CSV.

    Args:
        trace: Of a network with gates.
        folder: Where to.

    Returns:
        The files written.

    Raises:
        UserError: The trace has no gates.

    Example:
        >>> import tempfile
        >>> [path.name for path in write_figures(trace, tempfile.mkdtemp())][:2]
        ['class_rates.csv', 'class_rates.png']
    """
    if not trace.gates:
        raise UserError("the network has no gates to analyse: convert it first")
    by_class, by_gate, blocks = class_rates(trace), gate_rates(trace), blocks_executed(trace)
    about = f"{trace.source}, {len(trace.images)} images, policy {trace.policy}"
    made = {
        "class_rates": (
            by_class.rename_axis("class").reset_index(),
            class_heatmap(by_class, by_gate, about, most_rows=MOST_ROWS),
        ),
        "gate_rates": (by_gate, gate_bars(by_gate, about)),
        "blocks_executed": (
            blocks,
            blocks_histogram(blocks, about),
        ),
    }
    written = []
    for name, (numbers, figure) in made.items():
        for suffix in (".csv", ".png"):
            path = Path(folder) / (name + suffix)
            with replacing(path) as temporary:
                if suffix == ".csv":
                    numbers.to_csv(temporary, index=False)
                else:
                    figure.savefig(temporary)
            written.append(path)
    return written
