"""A gated network and images of one colour each, to train on."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from torch import nn
from torchvision.transforms.functional import to_tensor

from aigtool.data.images import ImageSet, open_images
from aigtool.models.description import Description
from aigtool.models.files import Model
from tests.training.small import SPEC


@pytest.fixture(autouse=True)
def _blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw the real one after each epoch, which takes longer than an epoch here."""
    monkeypatch.setattr(
        "aigtool.training.run_folder.training_figure", lambda _: Figure(figsize=(1, 1))
    )


@pytest.fixture
def model(gated_network: nn.Module) -> Model:
    return Model(gated_network, Description("cifar_resnet20", 3, input=SPEC))


@pytest.fixture
def train(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "train", to_tensor)


@pytest.fixture
def val(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "val", to_tensor)
