"""``aigtool models``: the names that can be converted."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aigtool.cli.console import print_facts, print_json, print_rows, progress, status
from aigtool.cli.options import Debug, Json, Quiet
from aigtool.errors import UserError

if TYPE_CHECKING:
    from aigtool.models.zoo import NetworkFacts


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Such as 'resnet50*' or 'torchvision:*'.")
    ] = "*",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the networks that convert knows by name; of a single one, its published weights too."""
    with status("reading the registries of timm and torchvision"):
        from fnmatch import fnmatchcase

        from aigtool.models.zoo import close_names, list_networks, look_up, published_weights

        names = [name for name in list_networks() if fnmatchcase(name, pattern.lower())]
        network, _, weights = pattern.lower().partition(".")
        if weights and network in list_networks() and weights in published_weights(network):
            names = [network]
    if not names:
        near = close_names(pattern)
        raise UserError(
            f"no ResNet of timm, torchvision or ours matches {pattern!r}; "
            + (
                f"did you mean {', '.join(near)}?"
                if near
                else "without a pattern all are listed, and '*part*' is a part of a name"
            )
        )
    if json:
        rows = []
        with progress("building without weights", len(names), "networks") as advance:
            for name in names:
                rows.append(asdict(look_up(name)) | {"weights": published_weights(name)})
                advance(1)
        print_json({"models": rows})
    elif len(names) == 1:
        _, *values = _row(look_up(names[0]))
        labels = ("blocks", "parameters", "input", "converts")
        weights = ", ".join(published_weights(names[0])) or "none"
        print_facts(names[0], [*zip(labels, values, strict=True), ("published weights", weights)])
    else:
        print_rows(
            {
                "name": max(map(len, names)),
                "blocks": -6,
                "parameters": -11,
                "input": -9,
                "converts": 8,
            },
            (_row(look_up(name)) for name in names),
        )


def _row(facts: "NetworkFacts") -> tuple[str, ...]:
    return (
        facts.name,
        str(facts.blocks),
        f"{facts.params:,}",
        "x".join(map(str, facts.input_size)),
        "yes" if facts.problem is None else f"no: {facts.problem}",
    )
