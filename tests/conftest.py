"""Networks and data that several tests share."""

import copy
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from aigtool.conversion import convert
from aigtool.flops import NetworkFlops, count_flops
from aigtool.models.cifar_resnet import CifarResNet
from aigtool.models.zoo import create_network
from tests.proof import enliven

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and pretrained weights, where they are at hand."""
    if not (SHARED / "weights").is_dir():
        pytest.skip(f"no real images and weights at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class MadeOnce:
    """A network to take copies of, each as if it had just been made: chance goes on alike."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        self.network = make()
        self.chance = torch.get_rng_state()

    def copied(self) -> nn.Module:
        torch.set_rng_state(self.chance)
        return copy.deepcopy(self.network)


@pytest.fixture(scope="session")
def lively() -> Callable[[str], nn.Module]:
    """Build a network by name with random weights whose blocks all matter."""

    @lru_cache(maxsize=1)
    def once(name: str, size: int) -> MadeOnce:
        return MadeOnce(lambda: enliven(create_network(name), size))

    def build(name: str, size: int = 64) -> nn.Module:
        return once(name, size).copied()

    return build


@pytest.fixture(scope="session")
def small_once() -> MadeOnce:
    return MadeOnce(lambda: enliven(create_network("cifar_resnet20", num_classes=3), 32))


@pytest.fixture
def small_network(small_once: MadeOnce) -> nn.Module:
    """A lively ResNet-20 for 32x32 images."""
    return small_once.copied()


@pytest.fixture(scope="session")
def shallow_once() -> MadeOnce:
    return MadeOnce(lambda: enliven(CifarResNet(8), 32))


@pytest.fixture
def shallow(shallow_once: MadeOnce) -> nn.Module:
    """A lively ResNet of a block a stage, for what takes long for each block."""
    return shallow_once.copied()


@pytest.fixture(scope="session")
def gated_once(small_once: MadeOnce) -> MadeOnce:
    return MadeOnce(lambda: convert(small_once.copied()))


@pytest.fixture
def gated_network(gated_once: MadeOnce) -> nn.Module:
    """It, with gates."""
    return gated_once.copied()


@pytest.fixture(scope="session")
def gated_flops(gated_once: MadeOnce) -> NetworkFlops:
    """Of that."""
    return count_flops(gated_once.network, (3, 32, 32))


@pytest.fixture(scope="session")
def images_made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "images"
    colors = {"blue": (20, 20, 220), "green": (20, 200, 20), "red": (220, 30, 30)}
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name, color in colors.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (32, 32), color)
                image.putpixel((number, number), (0, 0, 0))
                image.save(folder / f"{number}.png")
    return root


@pytest.fixture
def image_folder(images_made_once: Path, tmp_path: Path) -> Path:
    """``train/``, ``val/`` and ``test/`` with three classes of small images of one colour each."""
    return Path(shutil.copytree(images_made_once, tmp_path / "images"))


def close(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> bool:
    """Whether two outputs agree within ``bound`` of the largest value."""
    return bool((actual - expected).abs().max() <= bound * expected.abs().max())
