"""Gate a network of timm's and train it in a loop of your own.

Run it with ``python examples/own_training_loop.py``: a few steps on digits, to show the parts.
"""

import timm
import torch
from torch.nn import functional as F

import aigtool

TARGET_RATE = 0.6


def main(steps: int = 12) -> torch.nn.Module:
    """Train for some steps and return the gated network."""
    torch.manual_seed(0)
    network = aigtool.convert(timm.create_model("resnet10t", num_classes=10))
    spec = aigtool.InputSpec(size=(3, 32, 32), crop_pct=1.0)
    pixel_network = aigtool.PixelNetwork(network, spec)
    still = aigtool.Augmentation(hflip=0.0)
    images = aigtool.open_images("digits", "train", aigtool.train_transform(spec, still))

    gates = [p for _, gate in aigtool.named_gates(network) for p in gate.parameters()]
    others = [p for name, p in network.named_parameters() if ".gate." not in name]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 1e-3}, {"params": gates, "lr": 0.05}])
    pixel_network.train()
    batches = aigtool.load_batches(images, batch_size=64, shuffle_seed=0)
    # Over the latest images: a minibatch alone tells little of a rate.
    running = aigtool.RunningRates(len(list(aigtool.named_gates(network))))
    for step, (pixels, labels) in enumerate(batches, 1):
        with aigtool.recorded_decisions(network) as decisions:
            logits = pixel_network(pixels)
        rates = running(aigtool.execution_rates(decisions.values()), len(pixels))
        loss = F.cross_entropy(logits, labels) + 30 * aigtool.network_rate_loss(rates, TARGET_RATE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, execution rate {rates.mean().item():.2f}")
        if step == steps:
            break

    pixel_network.eval()
    test = aigtool.open_images("digits", "test", aigtool.eval_transform(spec)).limited(100)
    flops = aigtool.count_flops(network, spec.size)
    summary = aigtool.collect_trace(pixel_network, test, flops=flops).summary()
    print(f"argmax: execution rate {summary['execution_rate']:.2f}, top-1 {summary['top1']:.1f} %")
    return network


if __name__ == "__main__":
    main()
