"""A gated network and images of one colour each, to train on."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from torchvision.transforms.functional import to_tensor

from aigtool.conversion import convert
from aigtool.data.images import ImageSet, open_images
from aigtool.models.description import Description
from aigtool.models.files import Model
from tests.conftest import MadeOnce
from tests.training.small import SPEC


@pytest.fixture(autouse=True)
def _blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw the real one after each epoch, which takes longer than an epoch here."""
    monkeypatch.setattr(
        "aigtool.training.run_folder.training_figure", lambda _: Figure(figsize=(1, 1))
    )


@pytest.fixture(scope="session")
def gated_once(small_once: MadeOnce) -> MadeOnce:
    return MadeOnce(lambda: convert(small_once.copied()))


@pytest.fixture
def model(gated_once: MadeOnce) -> Model:
    return Model(gated_once.copied(), Description("cifar_resnet20", 3, input=SPEC))


@pytest.fixture
def train(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "train", to_tensor)


@pytest.fixture
def val(image_folder: Path) -> ImageSet:
    return open_images(str(image_folder), "val", to_tensor)
