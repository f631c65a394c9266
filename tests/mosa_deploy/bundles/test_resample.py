"""Resizing with numpy gives torchvision's bytes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.bundles.resample import KERNELS, resize

SIZES = [((60, 70), (48, 32)), ((300, 224), (224, 224)), ((20, 31), (64, 64)), ((2, 900), (16, 16)), ((1, 1), (9, 8))]


def torchvisions(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    resized = functional.resize(image, list(size), InterpolationMode(interpolation), antialias=True)
    return np.asarray(resized.permute(1, 2, 0))


@pytest.mark.parametrize("interpolation", sorted(KERNELS))
@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("contrast", [1, 255], ids=["noise", "black and white"])
def test_every_byte_is_torchvisions(
    interpolation: str, size: tuple[int, int], target: tuple[int, int], contrast: int
) -> None:
    values = np.random.default_rng(0).integers(0, 256 // contrast + (contrast > 1), (*size, 3)) * contrast
    pixels = np.minimum(values, 255).astype(np.uint8)
    np.testing.assert_array_equal(
        resize(pixels, *target, KERNELS[interpolation]), torchvisions(pixels, target, interpolation)
    )


def test_pillow_rounds_some_bytes_otherwise() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (160, 170, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    pillow = Preprocess(size=(64, 64), resize="squash")
    torchvision = pillow.model_copy(update={"resampler": "torchvision"})
    apart = np.abs(pillow.pixels(image).astype(int) - torchvision.pixels(image))
    assert apart.max() == 1
    np.testing.assert_array_equal(torchvision.pixels(image), torchvisions(pixels, (64, 64), "bicubic"))


@pytest.mark.parametrize(
    ("offset", "width", "expected"),
    [
        ("rounded", 7, [3, 4, 5, 6]),
        ("floored", 7, [2, 3, 4, 5]),
        ("truncated", 7, [2, 3, 4, 5]),
        ("floored", 1, [0, 0, 1, 0]),
        ("truncated", 1, [0, 1, 0, 0]),
    ],
)
def test_an_odd_margin_is_cut_as_the_library_does(offset: str, width: int, expected: list[int]) -> None:
    """Four columns are taken out of `width`, which are grey 1, 2 and so on; what lies outside is black."""
    pixels = np.repeat(np.arange(1, width + 1, dtype=np.uint8), 3).reshape(1, width, 3)
    cut = Preprocess.model_validate({"size": (1, 4), "resize": "none", "crop_offset": offset})
    assert cut.pixels(Image.fromarray(pixels))[0, :, 0].tolist() == expected
