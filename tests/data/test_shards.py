"""Shards of WebDataset are data like any other."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data import create_dataset
from torchvision.transforms.functional import to_tensor

from aigtool.data.images import (
    DataSource,
    ImageSet,
    default_split,
    has_split,
    open_images,
    validation_split,
)
from aigtool.data.loading import load_batches
from aigtool.data.training import open_training_images
from aigtool.errors import UserError
from aigtool.models.description import Description, InputSpec

CLASSES = ("blue", "green", "red")


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The images in shards of seven, as WebDataset writes them."""
    root = tmp_path / "shards"
    root.mkdir()
    told = {}
    for split in ("train", "val", "test"):
        images = sorted((image_folder / split).glob("*/*.png"))
        told[split] = {"name": split, "filenames": [], "shard_lengths": []}
        for number in range(0, len(images), 7):
            name = f"colours-{split}-{number // 7:04}.tar"
            part = images[number : number + 7]
            told[split]["filenames"].append(name)
            told[split]["shard_lengths"].append(len(part))
            with tarfile.open(root / name, "w") as shard:
                for image in part:
                    key = f"{image.parent.name}-{image.stem}"
                    label = str(CLASSES.index(image.parent.name))
                    add(shard, f"{key}.cls", label.encode())
                    add(shard, f"{key}.json", b"{}")
                    add(shard, f"{key}.png", image.read_bytes())
        told[split]["num_samples"] = len(images)
    (root / "_info.json").write_text(json.dumps({"splits": told}))
    return root


@pytest.fixture
def source(shards: Path) -> DataSource:
    return DataSource("wds/colours", str(shards))


@pytest.mark.parametrize("is_told", [True, False])
def test_shards_read_as_their_images_do(
    is_told: bool, image_folder: Path, shards: Path, source: DataSource
) -> None:
    if not is_told:
        (shards / "_info.json").unlink()
    ours = open_images(source, "train", to_tensor)
    folder = open_images(str(image_folder), "train", to_tensor)
    assert len(ours) == 24
    assert [*(ours.labels or ())] == [*(folder.labels or ())]
    assert ours.filename(8) == "colours-train-0001.tar/green-0.png"
    copied: ImageSet = pickle.loads(pickle.dumps(ours))
    for position in (23, 0, 8):
        assert torch.equal(copied[position][0], folder[position][0])
        assert copied[position][1] == folder[position][1]
    assert [has_split(source, s) for s in ("val", "validation", "testing", "extra")] == [
        *(True, True, True, False)
    ]
    assert (default_split(source), validation_split(source)) == ("test", "val")


def test_they_hold_what_timm_reads_in_its_order(source: DataSource) -> None:
    pytest.importorskip("webdataset")
    theirs = create_dataset(source.name, root=source.root, split="val")
    ours = open_images(source, "val", to_tensor)
    read = list(theirs)
    assert len(read) == len(ours) == 12
    for (image, label), (pixels, own) in zip(read, (ours[i] for i in range(12)), strict=True):
        assert label == own
        assert torch.equal(to_tensor(image), pixels)


def test_they_are_trained_on_as_folders_are(image_folder: Path, source: DataSource) -> None:
    """Shuffled, parted, by several processes that read."""
    description = Description("", 3, class_names=CLASSES, input=InputSpec(size=(3, 32, 32)))
    images = open_training_images(description, source)
    folder = open_training_images(description, DataSource(str(image_folder)))
    assert (len(images.train), len(images.val), images.held_out) == (24, 12, False)
    options = {"batch_size": 8, "shuffle_seed": 3}
    read = load_batches(images.train, workers=2, **options)
    for (pixels, labels), (others, wanted) in zip(
        read, load_batches(folder.train, **options), strict=True
    ):
        assert torch.equal(labels, wanted)
        assert torch.equal(pixels, others)


def _replaced(shards: Path, members: dict[str, bytes], mode: str = "w") -> None:
    for path in shards.glob("*test*.tar"):
        with tarfile.open(path, mode) as shard:
            for name, content in members.items():
                add(shard, name, content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: _replaced(root, {"a.png": b""}, "w:gz"), "a .tar file that is not compr"),
        (lambda root: _replaced(root, {"a.png": b""}), "no images with a label: expected members"),
        (lambda root: _replaced(root, {"a.cls": b"cat"}), r"a\.cls is 'cat': expected a class's"),
        (lambda root: (root / "_info.json").write_text("[]"), "expected timm's splits"),
        (lambda root: (root / "_info.json").write_text("{"), "cannot be read"),
        (
            lambda root: (root / "_info.json").write_text('{"splits": {}}'),
            "split 'test' has no shards in .*, which has colours-test-0000.tar, colours-test-0001",
        ),
        (lambda root: (root / "colours-test-0001.tar").unlink(), "No such file"),
        (lambda root: root.rename(root.with_name("gone")), "no such folder; expected one with sh"),
    ],
)
def test_shards_that_cannot_be_used_are_told(
    spoil: Callable[[Path], object], message: str, shards: Path, source: DataSource
) -> None:
    spoil(shards)
    with pytest.raises(UserError, match=message) as told:
        open_images(source, "test", to_tensor)
    assert "\n" not in str(told.value)


def test_a_damaged_image_is_named_with_its_shard(shards: Path, source: DataSource) -> None:
    _replaced(shards, {"a.png": b"no image", "a.cls": b"1\n"})
    with tarfile.open(shards / "colours-test-0000.tar", "a") as shard:
        folder = tarfile.TarInfo("b.cls")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
    images = open_images(source, "test", to_tensor)
    with pytest.raises(UserError, match=r"image .*/colours-test-0000.tar/a.png cannot be read"):
        images[0]


def test_shards_want_a_folder(source: DataSource) -> None:
    with pytest.raises(UserError, match=r"'wds/colours': say with --data-dir where it lies"):
        open_images(DataSource(source.name), "test", to_tensor)
