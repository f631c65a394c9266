import contextlib
import io
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
from PIL import Image
from scipy import special

from mosa_deploy.errors import DataError
from mosa_deploy.preprocess import Pixels, Preprocess, decode, encode, probabilities

SIZES = [(32, 32), (47, 31), (31, 47), (500, 20), (20, 500), (3, 5), (1, 1), (49, 98), (207, 414)]
"""(width, height); scaling a side of 98 by 32 / 49 in floats lands just below 64."""

NORMAL: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


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


def test_grey_alpha_and_palette_images_decode_to_their_own_colours() -> None:
    image = picture(7, 5)
    pixels = np.asarray(image)
    grey, palette = image.convert("L"), image.quantize(16)
    alpha = np.dstack([pixels, np.full((5, 7), 9, dtype=np.uint8)])
    expected: list[tuple[Image.Image, Pixels]] = [
        (grey, np.repeat(np.asarray(grey)[..., None], 3, axis=2)),
        (Image.fromarray(alpha), pixels),
        (palette, np.asarray(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)[np.asarray(palette)]),
    ]
    for stored, colours in expected:
        np.testing.assert_array_equal(np.asarray(decode(encoded(stored))), colours)


def test_a_cmyk_photo_decodes_to_rgb() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    decoded = decode(encoded(cyan, "jpeg", quality=95))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded), np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(7, 5)
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, exif=exif))), turn(np.asarray(image)))


def test_an_encoded_image_decodes_to_the_same_pixels() -> None:
    pixels = np.asarray(picture(9, 4))
    np.testing.assert_array_equal(np.asarray(decode(encode(pixels))), pixels)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    decoded = decode(encoded(first, "gif", save_all=True, append_images=[second]))
    assert decoded.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"GIF89a" + bytes(20)])
def test_bytes_that_are_no_image_are_refused_with_what_to_send(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^not a readable image \(\w+\): send a PNG, JPEG or WebP file$"):
        decode(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of some of the damage before it raises.
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "avif"])
def test_damaged_images_are_refused_and_never_crash(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture(40, 30), kind, **({} if kind in ("gif", "bmp") else {"exif": exif}))
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 300), 5):
            damaged[place] = random.integers(256)
        try:
            decode(bytes(damaged[: random.integers(1, len(whole))]))
        except DataError:
            refused += 1
    assert refused > 75


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_refused_or_read_and_never_crashes() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a picture", 6
    whole = encoded(picture(8, 8), "jpeg", exif=exif)
    assert whole.index(b"Exif") < 32
    for place in range(24, 80):
        for value in range(0, 256, 3):
            with contextlib.suppress(DataError):
                assert decode(whole[:place] + bytes([value]) + whole[place + 1 :]).mode == "RGB"


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
