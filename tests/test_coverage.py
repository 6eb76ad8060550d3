"""The slow proof: every network by name. It writes ``docs/coverage.md``.

python -m pytest -m coverage -s tests/test_coverage.py
"""

import gc
import os
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from aigtool.discovery import find_blocks
from aigtool.models.zoo import create_network, list_networks
from tests.proof import Proof, count_blocks_in_source, kinds_of, prove
from tests.test_kinds import NETWORKS

DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"

CONVOLUTIONAL = [
    "byoanet",
    "byobnet",
    "convmixer",
    "convnext",
    "cspnet",
    "cspnext",
    "densenet",
    "dla",
    "dpn",
    "efficientnet",
    "fasternet",
    "focalnet",
    "ghostnet",
    "hardcorenas",
    "hgnet",
    "hrnet",
    "inception_next",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2",
    "mambaout",
    "metaformer",
    "mobilenetv3",
    "nasnet",
    "nfnet",
    "pnasnet",
    "rdnet",
    "regnet",
    "repghost",
    "repvit",
    "res2net",
    "resnest",
    "resnet",
    "resnetv2",
    "rexnet",
    "selecsls",
    "senet",
    "sknet",
    "starnet",
    "tresnet",
    "vgg",
    "vovnet",
    "xception",
    "xception_aligned",
]
"""timm's modules of convolutional networks, for the report on names outside the family."""


@dataclass(frozen=True)
class Row:
    """A network of the family."""

    name: str
    in_source: int
    kinds: set[str]
    proof: Proof

    @property
    def holds(self) -> bool:
        return self.proof.holds and self.proof.gates == self.in_source


@dataclass(frozen=True)
class OtherRow:
    """A network outside the family, reported as found."""

    module: str
    name: str
    result: str
    remark: str = ""


def prove_family() -> list[Row]:
    rows = []
    for name in list_networks():
        with torch.device("meta"):
            kinds = kinds_of(create_network(name))
        row = Row(name, count_blocks_in_source(name), kinds, prove(name))
        rows.append(row)
        print(f"{len(rows):4} {name}: {'holds' if row.holds else row.proof}", flush=True)
        gc.collect()
    return rows


def try_others() -> list[OtherRow]:
    family = set(list_networks())
    rows = []
    for module in CONVOLUTIONAL:
        for name in timm.list_models(module=module):
            if name in family:
                continue
            rows.append(try_other(module, name))
            print(f"{len(rows):4} {rows[-1]}", flush=True)
            gc.collect()
    return rows


def try_other(module: str, name: str) -> OtherRow:
    try:
        found = find_blocks(create_network(name))
        reasons = "; ".join(sorted(set(found.refused.values())))
        if not found.blocks:
            return OtherRow(module, name, "none", reasons)
        proof = prove(name)
    # Whatever happens to one of them, the others are reported.
    except Exception as error:
        return OtherRow(module, name, "not exact", str(error)[:200])
    if not proof.holds:
        remark = (
            f"open {proof.opened:.0e}, skipping {proof.skipped:.0e}, closed {proof.closed:.0e}, "
            f"its own rounding {proof.rounding:.0e}"
        )
        return OtherRow(module, name, "not exact", remark)
    if found.refused:
        return OtherRow(module, name, "in part", f"{len(found.refused)} left out: {reasons}")
    return OtherRow(module, name, "exact")


def document(rows: list[Row], others: list[OtherRow]) -> str:
    published = [row for row in rows if not row.name.startswith("cifar_resnet")]
    ours = [row for row in rows if row.name.startswith("cifar_resnet")]
    counts = Counter(row.result for row in others)
    kinds = set().union(*(row.kinds for row in rows))
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, timm {timm.__version__}; {os.cpu_count()} CPU cores, "
        f"threads: {torch.get_num_threads()}"
    )
    lines = [
        "# Coverage",
        "",
        f"**{sum(row.holds for row in published)} of {len(published)}** published ResNets of timm "
        f"and torchvision convert exactly, and {sum(row.holds for row in ours)} of {len(ours)} of "
        f"ours. They have {len(kinds)} kinds of block (class, and layers of the shortcut).",
        "",
        f"Written by `python -m pytest -m coverage -s tests/test_coverage.py` with {versions}.",
        "",
        "Each network was built with random weights, its norm weights and gains drawn from 0.5 to "
        "1.5 and its running statistics taken from a pass in training mode, converted, and run in "
        "batches of 3 at the smallest of some sizes that it takes. Differences are shares of the "
        "largest value of the output.",
        "",
        "- *blocks*: gates put in; they equal the sum of the stage depths in the network's source",
        "- *rounding*: how far the original differs between a batch of 3 and three batches of 1",
        "- *open*: how far the network with open gates is from the original",
        "- *skipping*: how far skipping is from masking, under random gates",
        "- *closed*: how far closed gates are from open ones",
        "- *exact*: open and skipping are at most 1e-5 or the rounding, closed is at least 1 %, "
        "and a backward pass gave finite gradients everywhere and non-zero ones in the last "
        "layer of every gate",
        "- *seconds*: what the conversion took",
        "",
        f"Furthest of all: open {max(row.proof.opened for row in rows):.1e}, skipping "
        f"{max(row.proof.skipped for row in rows):.1e}, closed "
        f"{min(row.proof.closed for row in rows):.2f}. Under these weights the deepest networks "
        "amplify rounding; the column tells how much each does.",
        "",
        "| network | blocks | input | rounding | open | skipping | closed | exact | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
        *(
            f"| {row.name} | {row.proof.gates} | {row.proof.size} | {row.proof.rounding:.1e} | "
            f"{row.proof.opened:.1e} | {row.proof.skipped:.1e} | {row.proof.closed:.2f} | "
            f"{'yes' if row.holds else 'no'} | {row.proof.seconds:.2f} |"
            for row in rows
        ),
        "",
        "## Other convolutional networks of timm",
        "",
        "As found, with no promise: the same splitter on timm's other names in modules of "
        f"convolutional networks. {counts['exact']} of {len(others)} convert exactly, every "
        f"residual block of them; {counts['in part']} more do but for blocks that cannot be "
        f"gated and were left as they are; in {counts['none']} no block was found that can be "
        f"gated; {counts['not exact']} missed one of the bounds above.",
        "",
        "| module | names | exact | in part | none | not exact |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_module_line(module, others) for module in CONVOLUTIONAL),
        "",
        "Those not exact, and in part:",
        "",
        *(
            f"- {row.name} ({row.result}): {row.remark}"
            for row in others
            if row.result in ("not exact", "in part")
        ),
        "",
    ]
    return "\n".join(lines)


def _module_line(module: str, others: list[OtherRow]) -> str:
    counts = Counter(row.result for row in others if row.module == module)
    figures = (counts[result] for result in ("exact", "in part", "none", "not exact"))
    return f"| {module} | {counts.total()} | {' | '.join(map(str, figures))} |"


@pytest.mark.coverage
def test_every_network_by_name() -> None:
    rows = prove_family()
    assert sum(not row.name.startswith("cifar_resnet") for row in rows) >= 181
    others = try_others()
    DOCUMENT.write_text(document(rows, others))
    assert [row.name for row in rows if not row.holds] == []
    shown = set().union(*(row.kinds for row in rows if row.name in NETWORKS))
    assert shown == set().union(*(row.kinds for row in rows))
