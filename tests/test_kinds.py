"""One network of each kind of block: class of the block, and layers of its shortcut."""

from typing import Any

import pytest

from aigtool.models.zoo import create_network
from tests.marks import but_slow
from tests.proof import count_blocks_in_source, kinds_of, prove

NETWORKS = (
    "botnet26t_256",
    "cifar_resnet20",
    "ecaresnext26t_32x4d",
    "lambda_resnet26t",
    "legacy_seresnet18",
    "legacy_seresnet50",
    "legacy_seresnext26_32x4d",
    "nf_resnet26",
    "res2net50d",
    "resnest26d",
    "resnet18",
    "resnet50_clip_gap",
    "resnet50_gn",
    "resnet61q",
    "resnetblur50",
    "resnetv2_18",
    "resnetv2_18d",
    "resnetv2_50d_evos",
    "resnetv2_50t",
    "resnetv2_50x1_bit",
    "skresnet18",
    "skresnet50d",
    "test_resnet",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "tresnet_m",
    "tresnet_v2_l",
)
"""They have every kind that the family has, which ``test_coverage.py`` checks."""

BESIDES = ("dm_nfnet_f0", "resnet50_clip", "regnety_002", "convnext_atto")
"""Others whose blocks were hard: a write in place whose result goes unread, attention pooling,
and other families."""

SLOW = (
    *("botnet26t_256", "dm_nfnet_f0", "ecaresnext26t_32x4d", "resnet50_clip", "resnetblur50"),
    *("resnetv2_18d", "resnetv2_50t", "resnetv2_50x1_bit", "tresnet_v2_l"),
)
"""They take long, and the class of their blocks is among the others."""

SHALLOW: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("legacy_seresnet50", "res2net50d", "resnet50_gn"), (2, 1, 1, 1)),
    **dict.fromkeys(("resnetv2_50d_evos", "skresnet50d"), (2, 1, 1, 1)),
    "tresnet_m": (2, 2, 2, 2),
}
"""Depths of stages at which deep ones have every kind that they have."""


@pytest.mark.parametrize("name", but_slow([name for name in NETWORKS if name not in SHALLOW], SLOW))
def test_a_network_of_each_kind_converts_exactly(name: str) -> None:
    proof = prove(name)
    assert proof.holds, proof
    assert proof.gates == count_blocks_in_source(name)


@pytest.mark.parametrize(("name", "layers"), SHALLOW.items())
def test_a_shallow_network_of_each_kind_does(name: str, layers: tuple[int, ...]) -> None:
    proof = prove(name, layers=layers)
    assert proof.holds, proof
    assert proof.gates == sum(layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_it_has_the_kinds_of_the_deep_one(name: str) -> None:
    shallow = create_network(name, options={"layers": SHALLOW[name]})
    assert kinds_of(shallow) == kinds_of(create_network(name))


@pytest.mark.parametrize("name", but_slow(BESIDES, SLOW))
def test_others_convert_exactly_too(name: str) -> None:
    proof = prove(name)
    assert proof.holds, proof


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # Some versions of timm cannot drop a block larger than the map it is in.
        ("resnet18", {"size": 96, "drop_path_rate": 0.2, "drop_block_rate": 0.2}),
        ("resnet26", {"drop_path_rate": 0.2, "block_args": {"attn_layer": "eca"}}),
        ("resnetv2_50", {"drop_path_rate": 0.2}),
        pytest.param("nf_resnet26", {"drop_path_rate": 0.2}, marks=pytest.mark.slow),
    ],
)
def test_variants_convert_exactly(name: str, options: dict[str, Any]) -> None:
    proof = prove(name, **options)
    assert proof.holds, proof


def test_a_kind_tells_class_and_shortcut() -> None:
    assert kinds_of(create_network("torchvision:resnet18")) == {
        "torchvision.resnet.BasicBlock, shortcut identity",
        "torchvision.resnet.BasicBlock, shortcut Conv2d + BatchNorm2d",
    }
