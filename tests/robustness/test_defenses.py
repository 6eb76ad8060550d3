import io

import numpy as np
import pytest
import torch
from PIL import Image

from aigtool.errors import UserError
from aigtool.robustness.defenses import jpeg


@pytest.mark.parametrize("quality", [10, 75, 100])
def test_jpeg_is_pillows_image_by_image(quality: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    pixels = torch.from_numpy(array).permute(0, 3, 1, 2) / 255
    defended = jpeg(pixels, quality=quality)
    for image, ours in zip(array, defended, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(buffer), dtype=np.float32) / 255
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), theirs, atol=1e-6)


def test_grey_images_are_encoded_too() -> None:
    grey = torch.rand(2, 1, 16, 24)
    assert jpeg(grey, quality=90).shape == grey.shape


def test_lower_quality_changes_more() -> None:
    pixels = torch.rand(4, 3, 32, 32)
    changes = [(jpeg(pixels, quality=q) - pixels).abs().mean().item() for q in (95, 50, 5)]
    assert changes == sorted(changes)


@pytest.mark.parametrize("quality", [0, 101])
def test_a_wrong_quality_is_told(quality: int) -> None:
    with pytest.raises(UserError, match=f"JPEG quality {quality}"):
        jpeg(torch.zeros(1, 3, 8, 8), quality=quality)
