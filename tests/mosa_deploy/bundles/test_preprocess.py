from typing import Any

import numpy as np
import pytest
import timm
import timm.data
from PIL import Image
from scipy import special

from mosa_deploy.bundles.preprocess import Preprocess, probabilities

SIZES = [(32, 32), (47, 31), (31, 47), (500, 20), (20, 500), (3, 5), (1, 1), (49, 98), (207, 414)]
"""(width, height); scaling a side of 98 by 32 / 49 in floats lands just below 64."""

NORMAL: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(1.0, "bicubic"), (0.875, "bilinear"), (0.9, "lanczos")])
@pytest.mark.parametrize("side", [32, 224])
def test_preprocessing_is_timms_evaluation_transform(
    size: tuple[int, int], mode: str, crop_pct: float, interpolation: str, side: int
) -> None:
    config: dict[str, Any] = {
        "input_size": (3, side, side),
        "crop_mode": mode,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    image = picture(*size)
    expected = timm.data.create_transform(**config, **NORMAL, is_training=False)(image).numpy()
    preprocess = Preprocess.from_timm({**config, **NORMAL})
    found = preprocess.normalise(preprocess.pixels(image)[None])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_inputs_that_are_not_square_are_as_timms_too(size: tuple[int, int]) -> None:
    config: dict[str, Any] = {"input_size": (3, 24, 40), "crop_pct": 0.9, "interpolation": "bicubic"}
    expected = timm.data.create_transform(**config, **NORMAL, is_training=False)(picture(*size)).numpy()
    preprocess = Preprocess.from_timm({**config, **NORMAL})
    found = preprocess.normalise(preprocess.pixels(picture(*size))[None])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)


def test_squashing_overrides_a_models_crop() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("vit_tiny_patch16_224", depth=1))
    assert config["crop_pct"] == 0.9
    preprocess = Preprocess.from_timm(config, squash=True)
    image = picture(60, 30)
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocess.pixels(image), expected)


def test_normalising_is_the_formula_channel_by_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    found = Preprocess(size=(4, 5), **NORMAL).normalise(pixels)
    assert found.shape == (2, 3, 4, 5)
    for channel in range(3):
        expected = (pixels[..., channel] / 255 - NORMAL["mean"][channel]) / NORMAL["std"][channel]
        np.testing.assert_allclose(found[:, channel], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_are_the_softmax_of_tempered_logits(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 5, (6, 9)).astype(np.float32)
    found = probabilities(logits, temperature)
    assert found.dtype == np.float32
    expected = special.softmax(logits.astype(np.float64) / temperature, axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_probabilities_stand_extreme_logits() -> None:
    logits = np.array([[3e38, -3e38, 0.0], [1e4, 1e4, -1e4]], dtype=np.float32)
    np.testing.assert_allclose(probabilities(logits, 0.01), [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], rtol=0, atol=1e-7)
