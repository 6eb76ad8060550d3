"""``aigtool report``: one page of what the other commands wrote."""

from pathlib import Path
from typing import Annotated

import typer

from aigtool.cli.console import print_json, status, wrote
from aigtool.cli.options import Debug, Force, Json, Quiet


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that finetune, analyze, attack, bench or sweep wrote, folders of such, "
            "and traces that evaluate wrote.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page; report.html in the first RUN, or beside it, by default.",
            rich_help_panel="Output",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page of all that is found: opens from disk, without a network.

    Accuracy, GFLOPs, seconds and robustness, gated beside dense; which classes use which blocks,
    to be sorted and filtered; images with the blocks that they take; curves. What was not measured
    is said not to be.
    """
    from aigtool.output import check_output

    first = runs[0]
    page = out or (first if first.is_dir() else first.parent) / "report.html"
    check_output(page, force=force, suffix=".html")
    with status("reading and drawing"):
        from aigtool.report.page import write_report

        files = write_report(runs, page)
    if json:
        print_json({"out": page, "files": files, "bytes": page.stat().st_size})
    wrote([page])
