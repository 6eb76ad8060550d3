import math

import torch
from torch import nn

from aigtool.conversion import gate_policy
from aigtool.training.baseline import dropping_blocks


def test_it_runs_every_block_in_evaluation_and_shares_its_weights(gated_network: nn.Module) -> None:
    network = gated_network.eval()
    twin = dropping_blocks(network, 0.6).eval()
    pixels = torch.rand(4, 3, 32, 32)
    with torch.no_grad(), gate_policy(network, "open"):
        assert torch.equal(twin(pixels), network(pixels))
        network.linear.weight.mul_(2)
        assert torch.equal(twin(pixels), network(pixels))


def test_each_block_runs_at_its_rate_and_is_scaled_to_keep_the_mean(
    gated_network: nn.Module,
) -> None:
    """Within 4 standard errors of 0.6 over 9 blocks of 2,000 images."""
    twin = dropping_blocks(gated_network, 0.6).train()
    scales: list[torch.Tensor] = []

    for module in twin.modules():
        if hasattr(module, "gate"):
            module.gate.register_forward_hook(
                lambda _gate, _inputs, made: scales.append(made.scale)
            )
    torch.manual_seed(0)
    with torch.no_grad():
        twin(torch.rand(2000, 3, 8, 8))
    kept = torch.stack(scales)
    assert kept.shape == (9, 2000)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.6]))
    rate = (kept > 0).float().mean().item()
    assert abs(rate - 0.6) < 4 * math.sqrt(0.6 * 0.4 / kept.numel())
    blocks_differ = (kept > 0).float().mean(0).unique()
    assert len(blocks_differ) > 5  # by image and block, not for the batch at once
