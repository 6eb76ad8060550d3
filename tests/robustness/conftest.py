"""Networks and images that the tests of attacks share."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert, named_gates
from aigtool.data.images import ImageSet, open_images
from aigtool.flops import count_flops
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
def judged(small_network: nn.Module) -> Judged:
    """A network whose gates differ from image to image."""
    network = convert(small_network)
    for _, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight, std=2.0)
    pixel_network = PixelNetwork(network, InputSpec.of(network)).eval()
    return Judged(pixel_network, count_flops(network, (3, 32, 32)), "argmax")


@pytest.fixture
def networks(judged: Judged) -> dict[str, Judged]:
    return {"gated": judged, "open": Judged(judged.network, judged.flops, "open")}
