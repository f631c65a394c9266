"""Images whose values are not those of an ordinary photo: more bits, more bands, more frames, more pixels."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mosa_deploy.bundles.decode import WHITE_16, Decode
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError
from serving.app import create_app
from serving.errors import RequestError
from serving.images import read_pixels
from serving.settings import Settings
from training.headers import Headers

RNG = np.random.default_rng(0)
PREPROCESS = Preprocess(size=(16, 16))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def grey16(largest: int, kind: str = "png") -> bytes:
    """A 16-bit grey ramp that ends at `largest`."""
    return saved(Image.fromarray(np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)), kind)


def colour16_png(largest: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write."""
    values = np.linspace(0, largest, 8 * 8 * 3).astype(">u2").reshape(8, 24)
    lines = b"".join(b"\0" + line.tobytes() for line in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(values: NDArray[Any], photometric: int, extra: tuple[int, ...] = (), kind: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of values (H, W, bands). `kind`: 1 unsigned, 2 signed, 3 floating point."""
    height, width, bands = values.shape
    data, bits = values.tobytes(), 8 * values.itemsize
    tags: list[tuple[int, tuple[int, ...]]] = [
        (256, (width,)),
        (257, (height,)),
        (258, (bits,) * bands),
        (259, (1,)),
        (262, (photometric,)),
        (273, (8,)),
        (277, (bands,)),
        (278, (height,)),
        (279, (len(data),)),
        (284, (1,)),
        *([(338, extra)] if extra else []),
        (339, (kind,) * bands),
    ]
    directory, rest, after = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        if len(packed) > 4:
            rest, packed = rest + packed, struct.pack("<I", after + len(rest))
        directory += struct.pack("<HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0" + rest


def noise(bands: int, dtype: type = np.uint8) -> NDArray[Any]:
    return RNG.integers(0, 256, (8, 8, bands)).astype(dtype)


def remarks(*contents: bytes, white: int = WHITE_16) -> list[str]:
    """What is said of a data set of these images."""
    headers = Headers()
    for i, content in enumerate(contents):
        headers.look(content, f"{i}.png", PREPROCESS, 10**8)
    return headers.remarks(Decode(white=white))


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(("largest", "level"), [(255, 255), (1000, 1023), (4095, 4095), (4000, 4095), (16000, 16383)])
def test_a_camera_of_few_bits_is_told_with_its_largest_value_and_the_scale_that_mends_it(
    kind: str, largest: int, level: int
) -> None:
    (line,) = remarks(grey16(largest // 2, kind), grey16(largest, kind))
    assert line == (
        f"warning: 16-bit grey in 2 images, with values up to {largest} where 65535 is white: they look almost black;"
        f" tune with --white-level {level}, which the bundle keeps"
    )


def test_with_the_white_level_of_the_camera_its_images_are_as_bright_as_8_bit_ones() -> None:
    shown = np.asarray(Decode(white=4095).image(grey16(4095)))
    assert (shown.min(), shown.max()) == (0, 255)
    assert remarks(grey16(4095), white=4095) == []


def test_full_16_bits_need_no_word() -> None:
    assert remarks(grey16(65535), grey16(60000)) == []


def test_values_above_the_white_level_are_counted() -> None:
    (line,) = remarks(grey16(4095), grey16(5000), white=4095)
    assert "in 2 images, 1 of them with values above the white level 4095, up to 5000: these become white" in line
    assert "--white-level 8191" in line


def test_a_white_level_without_any_16_bit_image_is_told() -> None:
    eight = saved(Image.new("L", (8, 8)), "png")
    assert remarks(eight, white=4095) == ["warning: a white level of 4095 changes nothing: no image holds 16-bit grey"]


def test_files_of_different_bit_depths_are_told() -> None:
    (line,) = remarks(*[grey16(4095)] * 3, *[grey16(65535)] * 3)
    assert "in 6 images, 3 of them with values up to 4095 and the others up to 65535" in line


@pytest.mark.parametrize("make", [colour16_png, lambda largest: tiff(noise(3, np.uint16) * (largest // 256), 2)])
def test_16_bit_colour_of_12_bits_is_refused_with_the_way_out(make: Callable[[int], bytes]) -> None:
    with pytest.raises(DataError, match=r"the upper 8 bits alone, and these reach \d+ of 255: .* convert the files"):
        remarks(make(4095))


@pytest.mark.parametrize("make", [colour16_png, lambda largest: tiff(noise(3, np.uint16) * (largest // 256), 2)])
def test_16_bit_colour_of_full_range_is_read_and_said(make: Callable[[int], bytes]) -> None:
    content = make(65535)
    assert remarks(content) == ["16-bit colour in 1 image, of which the upper 8 bits are used"]
    assert np.asarray(Decode().image(content)).max() > 200


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (tiff(np.full((8, 8, 1), -5, dtype=np.int16), 1, kind=2), "a grey image with values from -5 to -5"),
        (tiff(np.full((8, 8, 1), 70000, dtype=np.int32), 1, kind=2), "a grey image with values from 70000 to 70000"),
        (tiff(np.full((8, 8, 1), 0.5, dtype=np.float32), 1, kind=3), "a floating-point image (mode F) has no agreed"),
        (tiff(noise(5), 1), "a TIFF of 5 bands, 4 more than its colours need, and these are not"),
        (tiff(noise(8), 1, (0,) * 7), "a TIFF of 8 bands"),
        (tiff(noise(5), 2, (0, 0)), "a TIFF of 5 bands, 2 more than its colours need, and these are not"),
        (tiff(noise(4), 2, (0,)), "a TIFF of 4 bands, 1 more than its colours need, and these are not"),
        (tiff(noise(4), 2), "a TIFF of 4 bands, 1 more than its colours need, and these are not"),
        (tiff(noise(4, np.uint16), 2, (0,)), "a TIFF of 4 bands"),
        (tiff(noise(13, np.uint16), 1), "a TIFF of 13 bands"),
        (tiff(noise(2), 1, (0,)), "a TIFF of 2 bands, 1 more than its colours need, and these are not"),
    ],
    ids=["signed", "32 bits", "float", "5", "8", "RGB+2", "RGB+1", "RGB+?", "RGB+1 16", "13", "grey+1"],
)
def test_a_tiff_that_is_no_photo_is_refused_by_name_in_tuning_and_in_the_service(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        Decode().image(content)
    assert str(caught.value).startswith(fault)
    with pytest.raises(RequestError) as refused:
        read_pixels(content, [PREPROCESS], 10**8)
    assert str(refused.value).startswith(fault)


@pytest.mark.parametrize(
    "content",
    [
        tiff(noise(1), 1),
        tiff(noise(3), 2),
        tiff(noise(4), 2, (2,)),
        tiff(noise(4), 2, (1,)),
        tiff(noise(4), 5),
        tiff(noise(2), 1, (2,)),
        saved(Image.new("RGBA", (8, 8), "red"), "tiff", compression="tiff_lzw"),
        saved(Image.new("CMYK", (8, 8), "red"), "tiff"),
        saved(Image.new("P", (8, 8)), "tiff"),
        saved(Image.new("RGB", (8, 8), "red"), "tiff", big_tiff=True),
    ],
    ids=["grey", "RGB", "RGBA", "RGBa", "CMYK", "LA", "RGBA lzw", "CMYK Pillow", "palette", "big"],
)
def test_a_tiff_with_the_bands_of_a_photo_is_read(content: bytes) -> None:
    assert Decode().image(content).mode == "RGB"


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "webp"])
def test_of_several_frames_the_first_is_taken_and_said(kind: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    content = saved(red, kind, save_all=True, append_images=[blue])
    assert remarks(content) == ["several frames or pages in 1 image, of which the first is used: 0.png"]
    red_shown, _, blue_shown = np.asarray(Decode().image(content))[4, 4]
    assert red_shown > 200 > 50 > blue_shown


def test_the_service_takes_as_many_pixels_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit is shrunk here, as an image above the real one needs half a gigabyte."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large = saved(Image.new("RGB", (40, 40), "red"), "png")
    with pytest.raises(RequestError, match="exceeds limit"):
        read_pixels(large, [PREPROCESS], 2000)
    create_app(Settings(max_pixels=2000))
    assert read_pixels(large, [PREPROCESS], 2000)[0].shape == (16, 16, 3)


def test_values_that_no_white_level_holds_are_left_to_the_decoder() -> None:
    headers = Headers()
    headers.look(saved(Image.new("I", (8, 8), 70_000), "tiff"), "deep.tiff", PREPROCESS, 1000)
    assert headers.remarks(Decode()) == []
