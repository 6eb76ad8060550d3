"""``aigtool models``: the names that can be converted."""

from typing import Annotated

import typer

from aigtool.cli.console import print_json, print_table, status
from aigtool.cli.options import Debug, Json, Quiet


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Such as 'resnet50*' or 'torchvision:*'.")
    ] = "*",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the networks that convert knows by name."""
    with status("reading the registries of timm and torchvision"):
        from fnmatch import fnmatch

        from aigtool.errors import UserError
        from aigtool.models.zoo import list_networks, published_weights

        names = [name for name in list_networks() if fnmatch(name, pattern)]
        if not names:
            raise UserError(
                f"no network matches {pattern!r}; try a wider pattern, such as "
                f"'*{pattern.strip('*')[:6]}*', or none"
            )
        weights = {name: published_weights(name) for name in names}
    if json:
        print_json({"models": [{"name": name, "weights": tags} for name, tags in weights.items()]})
        return
    print_table(
        f"{len(names)} networks",
        ["name", "published weights"],
        [[name, ", ".join(tags) or "-"] for name, tags in weights.items()],
        text_columns=2,
    )
