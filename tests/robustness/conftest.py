"""Networks and images that the tests of attacks share."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import named_gates
from aigtool.data.images import ImageSet, open_images
from aigtool.flops import NetworkFlops
from aigtool.models.description import InputSpec, PixelNetwork
from aigtool.robustness.cases import Judged


@pytest.fixture
def images(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "train", to_tensor)


@pytest.fixture
def batch(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, and their labels."""
    pixels, labels = zip(*(images[i] for i in range(len(images))), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


@pytest.fixture
def judged(gated_network: nn.Module, gated_flops: NetworkFlops) -> Judged:
    """A network whose gates differ from image to image."""
    for _, gate in named_gates(gated_network):
        nn.init.normal_(gate.fc2.weight, std=2.0)
    pixel_network = PixelNetwork(gated_network, InputSpec.of(gated_network)).eval()
    return Judged(pixel_network, gated_flops, "argmax")


@pytest.fixture
def networks(judged: Judged) -> dict[str, Judged]:
    return {"gated": judged, "open": Judged(judged.network, judged.flops, "open")}
