import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from aigtool.conversion import convert, named_gates
from aigtool.flops import BlockFlops, NetworkFlops, count_flops
from aigtool.models.zoo import create_network


def fvcore_count(network: nn.Module, size: int) -> float:
    analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, 3, size, size))
    analysis.unsupported_ops_warnings(False)
    return analysis.total() / 1e9


@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", 224), ("torchvision:resnet18", 64), ("resnetv2_50", 64)]
)
def test_dense_count_is_fvcores_on_the_network_before_conversion(name: str, size: int) -> None:
    network = create_network(name)
    params = sum(p.numel() for p in network.parameters())
    expected = fvcore_count(network, size)
    counts = count_flops(convert(network), (3, size, size))
    assert counts.gflops_dense == expected
    assert counts.params == params


def test_gates_of_resnet110() -> None:
    """35,916 parameters, as the authors' released code has; the paper says 0.01 % of FLOPs."""
    counts = count_flops(convert(create_network("cifar_resnet110")), (3, 32, 32))
    assert counts.gate_params == 35_916
    assert 0 < counts.gate_gflops <= 0.0002 * counts.gflops_dense


def test_a_gates_count_by_hand() -> None:
    counts = count_flops(convert(create_network("cifar_resnet20")), (3, 32, 32))
    # 16 channels to 16 units, their norm (two each: scale and shift), 16 units to 2 logits.
    assert round(counts.blocks[0].gate * 1e9) == 16 * 16 + 2 * 16 + 16 * 2


def test_a_block_by_hand() -> None:
    counts = count_flops(convert(create_network("cifar_resnet20")), (3, 32, 32))
    pixels = 32 * 32
    # Two 3x3 convolutions of 16 to 16 channels, two norms of two each; the shortcut is free.
    assert round(counts.blocks[0].gflops * 1e9) == pixels * (2 * 9 * 16 * 16 + 2 * 2 * 16)
    assert counts.blocks[0].skippable == counts.blocks[0].gflops


def test_a_projection_is_not_skippable() -> None:
    counts = count_flops(convert(create_network("resnet18")), (3, 64, 64))
    downsample = counts.blocks[2]
    assert downsample.name == "layer2.0"
    pixels = 8 * 8
    projection = pixels * (64 * 128 + 2 * 128)
    assert (downsample.gflops - downsample.skippable) * 1e9 == pytest.approx(projection)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_blocks_that_downsample_are_told(name: str) -> None:
    """A ResNet's stages but for the first begin by halving the resolution."""
    blocks = count_flops(convert(create_network(name)), (3, 64, 64)).blocks
    first = [block.name for block in blocks if block.name.endswith(".0")]
    assert [block.name for block in blocks if block.downsamples] == first[1:]


def test_executed_by_hand() -> None:
    blocks = (
        BlockFlops("a", 0.4, True, 0.3, 0.01, 5),
        BlockFlops("ungated", 0.1),
        BlockFlops("b", 0.2, True, 0.2, 0.02, 5),
    )
    counts = NetworkFlops(1.0, 10, blocks)
    executed = np.array([[True, True], [True, False], [False, False]])
    np.testing.assert_allclose(counts.executed(executed, "argmax"), [1.03, 0.83, 0.53])
    np.testing.assert_allclose(counts.executed(executed, "open"), [1.0, 0.8, 0.5])
    assert counts.gate_params == 10


def test_counting_leaves_the_network_as_it_was(gated_network: nn.Module) -> None:
    network = gated_network.train()
    network.layer1[0].bn1.eval()
    modes = [module.training for module in network.modules()]
    policies = [gate.policy for _, gate in named_gates(network)]
    count_flops(network, (3, 32, 32))
    assert [module.training for module in network.modules()] == modes
    assert [gate.policy for _, gate in named_gates(network)] == policies
