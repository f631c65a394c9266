import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import load_image

from mosa_deploy.bundles.decode import KEYED, TIMM, TRANSFORMERS, Decode, encode
from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import DataError

LOSSLESS: dict[str, dict[str, Any]] = {"webp": {"lossless": True}}


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def big_endian_tiff(values: NDArray[np.uint16]) -> bytes:
    """The same grey as Pillow's little-endian TIFF, written out: one strip, no compression."""
    height, width = values.shape
    strip = values.astype(">u2").tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 0), (277, 1), (278, height)]
    tags.append((279, len(strip)))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack(">HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags]
    return struct.pack(">2sHIH", b"MM", 42, 8, len(tags)) + b"".join(entries) + bytes(4) + strip


PALETTE = np.array([[10, 20, 30], [200, 100, 0], [255, 0, 255], [0, 0, 0]], dtype=np.uint8)
INDICES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.uint8)
GREY = np.array([[0, 1, 7, 128], [129, 254, 255, 7]], dtype=np.uint8)
DEEP = np.array([[0, 128, 129, 256], [385, 386, 0xFF7F, 0xFFFF]], dtype=np.uint16)
DEEP_SCALED = np.array([[0, 0, 1, 1], [1, 2, 255, 255]], dtype=np.uint8)
"""DEEP / 257, rounded by hand: 128 and 385 lie just below a half, 129 and 386 just above."""
ALPHA = np.array([[0, 1, 127, 128], [200, 254, 255, 0]], dtype=np.uint8)


def colours(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """round(a c + (1 - a) 255), written out in float64."""
    share = alpha[..., None] / 255
    return np.round(share * rgb + (1 - share) * 255).astype(np.uint8)


def paletted(**info: Any) -> Image.Image:
    image = Image.fromarray(INDICES, "P")
    image.putpalette(PALETTE.tobytes())
    image.info.update(info)
    return image


def pgm(values: Pixels | NDArray[np.uint16]) -> bytes:
    return b"P5 4 2 65535\n" + values.astype(">u2").tobytes()


def tiff(values: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(values), "tiff")


RGB = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)
KINDS: dict[str, tuple[str, bytes, Pixels]] = {
    "RGB": ("RGB", encoded(Image.fromarray(RGB)), RGB),
    "grey": ("L", encoded(Image.fromarray(GREY)), colours(GREY)),
    "one bit": ("1", encoded(Image.fromarray(GREY > 100)), colours(np.uint8(255) * (GREY > 100))),
    "16-bit grey PNG": ("I;16", encoded(Image.fromarray(DEEP)), colours(DEEP_SCALED)),
    "16-bit grey TIFF": ("I;16", tiff(DEEP), colours(DEEP_SCALED)),
    "16-bit grey TIFF, big-endian": ("I;16B", big_endian_tiff(DEEP), colours(DEEP_SCALED)),
    "16-bit grey PGM": ("I", pgm(DEEP), colours(DEEP_SCALED)),
    "32-bit grey TIFF of 16-bit values": ("I", tiff(DEEP.astype(np.int32)), colours(DEEP_SCALED)),
    "palette": ("P", encoded(paletted()), PALETTE[INDICES]),
    "palette with a transparent colour": (
        "P",
        encoded(paletted(transparency=1), "gif"),
        np.where(INDICES[..., None] == 1, np.uint8(255), PALETTE[INDICES]),
    ),
    "palette with an alpha a colour": (
        "P",
        encoded(paletted(), transparency=bytes([0, 100, 255, 200])),
        over_white(PALETTE[INDICES], np.array([0, 100, 255, 200], dtype=np.uint8)[INDICES]),
    ),
    "alpha": ("RGBA", encoded(Image.fromarray(np.dstack([RGB, ALPHA]))), over_white(RGB, ALPHA)),
    "opaque alpha": ("RGBA", encoded(Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)]))), RGB),
    "alpha in WebP": (
        "RGBA",
        encoded(Image.fromarray(np.dstack([RGB, ALPHA])), "webp", lossless=True, exact=True),
        over_white(RGB, ALPHA),
    ),
    "grey with alpha": (
        "LA",
        encoded(Image.fromarray(np.dstack([GREY, ALPHA]))),
        over_white(colours(GREY), ALPHA),
    ),
    "grey with a transparent value": (
        "L",
        encoded(Image.fromarray(GREY), transparency=7),
        colours(np.where(GREY == 7, np.uint8(255), GREY)),
    ),
    "16-bit grey with a transparent value": (
        "I;16",
        encoded(Image.fromarray(DEEP), transparency=386),
        colours(np.where(DEEP == 386, np.uint8(255), DEEP_SCALED)),
    ),
    "RGB with a transparent colour": (
        "RGB",
        encoded(Image.fromarray(RGB), transparency=tuple(RGB[1, 2].tolist())),
        over_white(RGB, np.where((RGB[1, 2] == RGB).all(-1), 0, 255).astype(np.uint8)),
    ),
}
"""How an image is stored -> the mode that Pillow opens it in, its bytes, and its pixels over white."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_decodes_to_the_same_8_bit_rgb_over_white(kind: str) -> None:
    mode, content, expected = KINDS[kind]
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.mode == mode
    decoded = Decode().image(content)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)


def test_colours_under_transparent_pixels_do_not_show() -> None:
    secret = np.dstack([RGB, np.zeros_like(ALPHA)])
    assert (np.asarray(Decode().image(encoded(Image.fromarray(secret)))) == 255).all()


def test_16_bit_grey_keeps_its_order_and_ends() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(ramp / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Decode().image(encoded(Image.fromarray(ramp)))), colours(expected))


def test_floating_point_images_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"^a floating-point image \(mode F\) has no agreed white: save it with 8 or"):
        Decode().image(tiff(np.ones((2, 4), dtype=np.float32)))


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_integers_beyond_16_bits_are_refused_not_clipped(values: list[int]) -> None:
    said = rf"^a grey image with values from {values[0]} to {values[1]}: save it with 8 or 16 bits$"
    with pytest.raises(DataError, match=said):
        Decode().image(tiff(np.array([values], dtype=np.int32)))


def test_cmyk_decodes_to_rgb() -> None:
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    lights = [[[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]]
    decoded = Decode().image(encoded(Image.fromarray(inks, "CMYK"), "tiff"))
    np.testing.assert_array_equal(np.asarray(decoded), lights)


def test_a_cmyk_photo_decodes_to_rgb() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    decoded = Decode().image(encoded(cyan, "jpeg", quality=95))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded), np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("kind", ["16-bit grey PNG", "alpha", "palette with an alpha a colour"])
def test_exif_orientation_is_applied_whatever_the_kind(kind: str) -> None:
    _, content, expected = KINDS[kind]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(content)) as stored:
        turned = encoded(stored, exif=exif)
    np.testing.assert_array_equal(np.asarray(Decode().image(turned)), np.rot90(expected, -1))


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
    np.testing.assert_array_equal(np.asarray(Decode().image(encoded(image, exif=exif))), turn(np.asarray(image)))


def test_an_encoded_image_decodes_to_the_same_pixels() -> None:
    pixels = np.asarray(picture(9, 4))
    np.testing.assert_array_equal(np.asarray(Decode().image(encode(pixels))), pixels)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for kind in ("gif", "webp", "png", "tiff"):
        decoded = Decode().image(encoded(first, kind, save_all=True, append_images=[second], **LOSSLESS.get(kind, {})))
        np.testing.assert_array_equal(np.asarray(decoded), np.broadcast_to([255, 0, 0], (4, 4, 3)))


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"GIF89a" + bytes(20)])
def test_bytes_that_are_no_image_are_refused_with_what_to_give(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^not a readable image \(\w+\): give a PNG, JPEG or WebP file$"):
        Decode().image(content)


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
            Decode().image(bytes(damaged[: random.integers(1, len(whole))]))
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
                assert Decode().image(whole[:place] + bytes([value]) + whole[place + 1 :]).mode == "RGB"


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO"])
def test_a_format_that_is_not_a_photo_s_is_refused(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format=kind)
    with pytest.raises(
        DataError, match=r"^not a readable image \(UnidentifiedImageError\): give a PNG, JPEG or WebP file$"
    ):
        Decode().image(buffer.getvalue())


def turned_kinds() -> dict[str, bytes]:
    """Every kind of image, and one that EXIF turns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return {kind: content for kind, (_, content, _) in KINDS.items()} | {
        "turned by EXIF": encoded(picture(7, 5), exif=exif),
        "float": tiff(np.array([[0, 3.5], [300, -2]], dtype=np.float32)),
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")
@pytest.mark.parametrize("kind", turned_kinds())
def test_timms_policy_shows_what_its_data_sets_show(kind: str) -> None:
    content = turned_kinds()[kind]
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(TIMM.image(content)), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")
@pytest.mark.parametrize("kind", turned_kinds())
def test_transformers_policy_shows_what_its_pipelines_show(kind: str) -> None:
    content = turned_kinds()[kind]
    expected = load_image(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(TRANSFORMERS.image(content)), np.asarray(expected))


def test_the_value_that_becomes_white_can_be_chosen() -> None:
    twelve_bits = np.array([[0, 8, 9, 2048, 4095, 5000]], dtype=np.uint16)
    found = np.asarray(Decode(white=4095).image(encoded(Image.fromarray(twelve_bits))))
    np.testing.assert_array_equal(found, colours(np.array([[0, 0, 1, 128, 255, 255]], dtype=np.uint8)))


def test_the_first_picture_of_a_stereo_camera_is_taken() -> None:
    left, right = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    content = encoded(left, "mpo", save_all=True, append_images=[right])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    np.testing.assert_allclose(np.asarray(Decode().image(content)), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_keyed_lays_the_one_colour_over_white_that_a_file_names_as_transparent(mode: str) -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9)).convert(mode)
    image.putpixel((1, 0), (7, 7, 7) if mode == "RGB" else 7)
    key: Any = image.getpixel((0, 0))
    content = encoded(image, transparency=key)
    seen = np.asarray(KEYED.image(content))[0, 0].tolist()
    assert seen == [255, 255, 255]
    assert TRANSFORMERS.image(content).getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))


def test_keyed_drops_an_alpha_channel() -> None:
    image = Image.new("RGBA", (1, 1), (9, 8, 7, 0))
    assert np.asarray(KEYED.image(encoded(image)))[0, 0].tolist() == [9, 8, 7]
