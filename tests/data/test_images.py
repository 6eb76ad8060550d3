import dataclasses
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from aigtool.data.augmentation import Augmentation
from aigtool.data.decoding import read_image
from aigtool.data.images import (
    DataSource,
    default_split,
    has_split,
    open_images,
    validation_split,
)
from aigtool.data.loading import (
    eval_transform,
    held_out,
    load_batches,
    spare_workers,
    train_transform,
)
from aigtool.data.seeding import seeded
from aigtool.data.training import open_training_images
from aigtool.errors import UserError
from aigtool.models.description import Description, InputSpec
from aigtool.models.override import Interpolation

SPEC = InputSpec(size=(3, 32, 32), crop_pct=1.0)


def test_a_folder_reads_as_torchvision_reads_it(image_folder: Path) -> None:
    ours = open_images(str(image_folder), "train", to_tensor)
    theirs = ImageFolder(str(image_folder / "train"), to_tensor)
    assert ours.classes == tuple(theirs.classes)
    assert len(ours) == len(theirs) == 24
    for position in range(24):
        pixels, label = ours[position]
        assert label == theirs[position][1]
        assert torch.equal(pixels, theirs[position][0])


def test_folders_are_matched_by_name_never_by_position(image_folder: Path) -> None:
    names = ("red", "violet", "blue", "green")
    images = open_images(str(image_folder), "test", to_tensor, names)
    by_file = {images.filename(i).split("/")[1]: images[i][1] for i in range(len(images))}
    assert by_file == {"blue": 2, "green": 3, "red": 0}
    assert images.absent_classes == ("violet",)


def test_a_class_map_maps_other_names(image_folder: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.txt"
    mapping.write_text("green\nred\n")
    source = DataSource(str(image_folder), class_map=str(mapping))
    images = open_images(source, "test", to_tensor, ("grass", "fire"))
    assert len(images) == 8
    assert {images.filename(i).split("/")[1]: images[i][1] for i in range(8)} == {
        "green": 0,
        "red": 1,
    }
    assert images.unmapped == images.limited(2).unmapped == ("blue",)


def test_what_to_choose_by_is_never_what_to_judge_by(image_folder: Path) -> None:
    folder = DataSource(str(image_folder))
    assert validation_split(folder) == "val"
    assert validation_split(DataSource(str(image_folder / "val"))) == ""
    shutil.rmtree(image_folder / "val")
    for source in (folder, DataSource("torch/cifar10", "anywhere")):
        with pytest.raises(UserError, match="name with --split what to choose by"):
            validation_split(source)


def test_splits(image_folder: Path) -> None:
    source = DataSource(str(image_folder))
    assert default_split(source) == "test"
    assert default_split(DataSource("digits")) == "test"
    assert default_split(DataSource(str(image_folder / "val"))) == ""
    assert has_split(source, "validation")
    (image_folder / "val").rename(image_folder / "validation")
    assert len(open_images(source, "val", to_tensor)) == 12
    assert len(open_images(str(image_folder / "test"), "", to_tensor)) == 12


def test_a_limit_keeps_classes_in_proportion(image_folder: Path) -> None:
    images = open_images(str(image_folder), "train", to_tensor).limited(6)
    assert sorted(images[i][1] for i in range(6)) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="limit 0"):
        images.limited(0)


def test_a_timm_data_set_by_name(image_folder: Path) -> None:
    source = DataSource("torch/image_folder", root=str(image_folder))
    images = open_images(source, "test", to_tensor, ("red", "green", "blue"))
    assert len(images) == 12
    assert images[0][1] == 2
    assert images.labels == [2] * 4 + [1] * 4 + [0] * 4


def test_digits_are_parted_without_overlap() -> None:
    parts = {split: open_images("digits", split, to_tensor) for split in ("train", "val", "test")}
    names = [p.filename(i) for p in parts.values() for i in range(len(p))]
    assert len(names) == len(set(names)) == 1797
    assert all(set(part.labels or ()) == set(range(10)) for part in parts.values())


def bad_folder(tmp_path: Path, kind: str) -> Path:
    root = tmp_path / kind
    root.mkdir()
    if kind == "one class":
        (root / "only").mkdir()
        Image.new("RGB", (8, 8)).save(root / "only" / "a.png")
    if kind == "flat":
        for name in ("a", "b"):
            Image.new("RGB", (8, 8)).save(root / f"{name}.png")
    if kind == "unreadable":
        for name in ("a", "b"):
            (root / name).mkdir()
            (root / name / "x.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no images", "has no images"),
        ("one class", "one class, 'only'"),
        ("flat", "images that are in no class's folder"),
    ],
)
def test_folders_that_cannot_be_used_are_told(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_images(str(bad_folder(tmp_path, kind)), "", to_tensor)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    images = open_images(str(bad_folder(tmp_path, "unreadable")), "", to_tensor)
    with pytest.raises(UserError, match=r"a/x\.png cannot be read"):
        images[0]
    with pytest.raises(UserError, match=r"x\.png cannot be read"):
        list(load_batches(images, batch_size=2, workers=1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_seen_as_eight(suffix: str, tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(str(tmp_path / f"a.{suffix}")))
    assert np.array_equal(read, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_largest_are_told(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"cannot be read .*have no largest"):
        read_image(str(tmp_path / "a.tif"))


def test_a_decoder_may_raise_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of AVIF does for a damaged file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    failing = mock.Mock(side_effect=RuntimeError("Failed to decode image"))
    monkeypatch.setattr(Image.Image, "convert", failing)
    with pytest.raises(UserError, match=r"cannot be read \(Failed to decode image\)"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("source", "split", "names", "message"),
    [
        ("nowhere", "", None, "no such folder"),
        ("FOLDER", "holdout", None, r"split 'holdout' is not in .*: it has test, train, val"),
        ("FOLDER", "test", ("red", "green"), "classes that the network has not: blue"),
        ("digits", "holdout", None, "digits has train, val, test"),
        ("digits", "test", ("cat", "dog"), "classes that the network has not"),
        ("torch/cifar10", "test", None, "cannot be opened"),
        ("torch/no_such", "test", None, "cannot be opened"),
    ],
)
def test_data_that_cannot_be_opened_is_told(
    source: str,
    split: str,
    names: tuple[str, ...] | None,
    message: str,
    image_folder: Path,
) -> None:
    source = str(image_folder) if source == "FOLDER" else source
    with pytest.raises(UserError, match=message):
        open_images(DataSource(source, root=str(image_folder)), split, to_tensor, names)


def test_another_number_of_classes_is_told(image_folder: Path) -> None:
    images = open_images(str(image_folder), "test", to_tensor)
    images.check_classes(3)
    with pytest.raises(UserError, match="has 3 classes, the network has 10 outputs"):
        images.check_classes(10)


def test_small_images_keep_their_shape_in_training() -> None:
    """A circle in a wide image is as wide as high, as it is in evaluation."""
    spec = InputSpec(size=(3, 32, 32), crop_pct=1.0)
    wide = Image.new("L", (128, 64))
    ImageDraw.Draw(wide).ellipse((44, 12, 84, 52), fill=255)
    wide = wide.convert("RGB")
    inked = (train_transform(spec, Augmentation(hflip=0.0, aa="none"))(wide)[0] > 0.5).float()
    across, down = (int((inked.sum(axis) > 0).sum()) for axis in (0, 1))
    assert abs(across - down) <= 1
    assert abs(across - 20) <= 1


@pytest.mark.parametrize("size", [8, 32, 96])
def test_transforms_end_in_pixels(size: int) -> None:
    spec = InputSpec(size=(3, size, size))
    image = Image.new("RGB", (50, 40), (255, 0, 51))
    for transform in (eval_transform(spec), train_transform(spec, scale=(0.9, 1.0))):
        pixels = transform(image)
        assert pixels.shape == (3, size, size)
        assert 0 <= pixels.min() <= pixels.max() <= 1
    torch.testing.assert_close(eval_transform(spec)(image)[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_an_image_of_the_networks_size_is_not_resampled() -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    assert torch.equal(eval_transform(SPEC)(image), to_tensor(image))


@pytest.mark.parametrize("source", ["FOLDER", "digits", "torch/image_folder"])
def test_images_go_to_worker_processes(source: str, image_folder: Path) -> None:
    """Where processes do not fork, a worker gets a pickled copy."""
    name = str(image_folder) if source == "FOLDER" else source
    images = open_images(DataSource(name, root=str(image_folder)), "test", to_tensor)
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[3][0], images[3][0])
    assert (again[3][1], again.filename(3)) == (images[3][1], images.filename(3))


def test_ctrl_c_is_left_to_the_main_process(image_folder: Path) -> None:
    def ignores(_image: Image.Image) -> torch.Tensor:
        return torch.tensor(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)

    images = open_images(str(image_folder), "test", ignores)
    # A job in the background of a script is begun with it ignored.
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for workers, expected in ((0, is_ignored), (1, True)):
        told = torch.cat([pixels for pixels, _ in load_batches(images, workers=workers)])
        assert told.tolist() == [expected] * len(images)


def test_a_last_batch_of_one_joins_the_one_before(image_folder: Path) -> None:
    images = open_images(str(image_folder), "train", to_tensor)
    batches = load_batches(images, batch_size=23, shuffle_seed=0)
    for _ in range(2):
        assert [len(labels) for _, labels in batches] == [24]
    assert len(batches) == 1
    assert [len(y) for _, y in load_batches(images, batch_size=23)] == [23, 1]
    assert [len(y) for _, y in load_batches(images.take([0]), shuffle_seed=0)] == [1]


def brightened(image: Image.Image) -> Tensor:
    """Return pixels, each image brighter by a draw of its own."""
    return to_tensor(image) + torch.rand(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_each_image_several_times_each_augmented_anew(
    workers: int, image_folder: Path
) -> None:
    images = open_images(str(image_folder), "train", brightened)
    once = list(load_batches(images, batch_size=4, shuffle_seed=3, workers=workers))
    thrice = load_batches(images, batch_size=12, shuffle_seed=3, workers=workers, repeats=3)
    assert len(thrice) == len(once) == 6
    for (pixels, labels), (repeated, again) in zip(once, thrice, strict=True):
        views = repeated.unflatten(0, (3, 4)).transpose(0, 1)
        assert torch.equal(views[:, 0], pixels)
        brighter = (views - views[:, :1]).flatten(2)
        torch.testing.assert_close(brighter, brighter[..., :1].expand_as(brighter))
        assert len(brighter[..., 0].unique()) == 4 * 2 + 1
        assert torch.equal(again, labels.repeat(3)), "mixup mixes neighbours: not one image's views"


def test_class_maps_that_cannot_be_used_are_told(image_folder: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.txt"
    source = DataSource(str(image_folder), class_map=str(mapping))
    mapping.write_text("cat\ndog\n")
    with pytest.raises(UserError, match="names none of the folders"):
        open_images(source, "test", to_tensor)
    mapping.write_text("green\nblue\nred\ngreen\n")
    with pytest.raises(UserError, match="has 'green' twice"):
        open_images(source, "test", to_tensor)
    mapping.write_text("red\ngreen\nblue\n")
    with pytest.raises(UserError, match="labels up to 2, the network has 2 outputs"):
        open_images(source, "test", to_tensor).check_classes(2)


def test_a_shuffled_order_follows_its_seed(image_folder: Path) -> None:
    images = open_images(str(image_folder), "train", to_tensor)

    def order(seed: int) -> list[int]:
        batches = load_batches(images, batch_size=5, shuffle_seed=seed)
        return [label for _, labels in batches for label in labels.tolist()]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2)) == [0] * 8 + [1] * 8 + [2] * 8


@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=200),
    st.floats(0.05, 0.5),
    st.integers(0, 100),
)
def test_held_out_parts_the_positions(labels: list[int], fraction: float, seed: int) -> None:
    labels = [*labels, 0, 0]
    kept, out = held_out(labels, fraction, seed)
    assert sorted(kept + out) == list(range(len(labels)))
    assert held_out(labels, fraction, seed) == (kept, out)
    for label in set(labels):
        count = labels.count(label)
        taken = sum(labels[position] == label for position in out)
        assert taken == (0 if count == 1 else min(max(1, round(fraction * count)), count - 1))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_fraction_that_leaves_nothing_is_told(fraction: float) -> None:
    with pytest.raises(UserError, match="validation fraction"):
        held_out([0, 1, 0, 1], fraction, 0)


def test_training_images(image_folder: Path) -> None:
    description = Description("", 3, input=SPEC)
    source = DataSource(str(image_folder))
    images = open_training_images(description, source)
    assert (len(images.train), len(images.val), images.held_out) == (24, 12, False)
    for name in ("val", "test"):
        (image_folder / name).rename(image_folder / f"other-{name}")
    images = open_training_images(description, source, val_fraction=0.25)
    assert (len(images.train), len(images.val), images.held_out) == (18, 6, True)
    plain = DataSource(str(image_folder / "train"))
    assert len(open_training_images(description, plain, val_fraction=0.25).train) == 18
    names = {images.train.filename(i) for i in range(18)}
    assert not names & {images.val.filename(i) for i in range(6)}


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"repeats": 0}])
def test_wrong_loader_options_are_told(options: dict[str, int], image_folder: Path) -> None:
    images = open_images(str(image_folder), "test", to_tensor)
    with pytest.raises(UserError, match="expected a whole number"):
        load_batches(images, **options)


def test_augmentations_change_training_images_and_no_others() -> None:
    values = np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    spec = InputSpec(size=(3, 32, 32), crop_pct=1.0)
    still = Augmentation(hflip=0.0, aa="none")
    plain = to_tensor(image)

    def drawn(augmentation: Augmentation) -> Tensor:
        transform = train_transform(spec, augmentation)
        with seeded(0):
            return torch.stack([transform(image) for _ in range(5)])

    shifted = drawn(still)
    assert {*shifted.unique().tolist()} <= {*plain.unique().tolist(), 0.0}
    for change in ({"color_jitter": 0.3}, {"aa": None}, {"aa": "rand-m9"}, {"reprob": 1.0}):
        changed = drawn(dataclasses.replace(still, **change))  # type: ignore[arg-type]
        assert not torch.equal(changed, shifted), change


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_images_are_trained_on_by_any_filter(interpolation: str) -> None:
    """Pillow turns and shears images by three of them alone."""
    spec = InputSpec(size=(3, 72, 72), interpolation=interpolation)
    transform = train_transform(spec, Augmentation(aa="rand-m9-n4"))
    image = Image.effect_noise((80, 80), 80).convert("RGB")
    with seeded(0):
        assert all(transform(image).shape == (3, 72, 72) for _ in range(40))


@pytest.mark.parametrize("policy", ["rand-m0-n4", "rand-m10-n4-inc1", "rand-m9-mstd9", "original"])
def test_policies_of_any_strength_run(policy: str) -> None:
    """Timm's posterise keeps no bit at its strongest, which Pillow refuses."""
    transform = train_transform(InputSpec(size=(3, 32, 32)), Augmentation(aa=policy))
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    with seeded(0):
        assert all(torch.isfinite(transform(image)).all() for _ in range(100))


@pytest.mark.parametrize(
    ("cores", "has_gpu", "spare"),
    [(1, False, 0), (2, False, 0), (3, False, 1), (16, False, 2), (None, False, 0), (2, True, 2)],
)
def test_images_are_read_beside_a_network_that_leaves_a_core(
    cores: int | None, has_gpu: bool, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    assert spare_workers() == spare
