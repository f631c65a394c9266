"""JPEGs that the decoder itself makes smaller: close to what full decoding gives, and refused where it refuses."""

import base64
import io
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mosa_deploy.bundles.decode import Decode, encode
from mosa_deploy.bundles.preprocess import Preprocess, read_each
from mosa_deploy.errors import DataError

SCALED = Decode(jpeg="scaled")
PHOTOS = ("china.jpg", "flower.jpg")
"""Real photos of 640 x 427 pixels that come with scikit-learn."""
SIZES = {96: 2, 48: 4, 24: 8}
"""Side of the input -> by how much such a photo is made smaller: at most half as much as it is resized."""


def photo(name: str = "china.jpg") -> bytes:
    return files("sklearn.datasets.images").joinpath(name).read_bytes()


def ramps(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, so that a shift shows."""
    across, down = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    pixels = np.stack(np.broadcast_arrays(across, down, 128.0), axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image: Image.Image, kind: str = "jpeg", turned: int | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if turned is not None:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = turned
    image.save(buffer, kind, quality=95, **options)
    return buffer.getvalue()


def both(content: bytes, size: tuple[int, int], **how: Any) -> NDArray[np.float64]:
    """The pixels (2, H, W, 3) by full and by scaled decoding."""
    ways = [Preprocess(size=size, decode=decode, **how) for decode in (Decode(), SCALED)]
    return np.stack([way.read(content) for way in ways]).astype(np.float64)


def apart(content: bytes, size: tuple[int, int] = (24, 24), **how: Any) -> NDArray[np.float64]:
    full, scaled = both(content, size, **how)
    difference: NDArray[np.float64] = np.abs(full - scaled)
    return difference


def decoded_size(content: bytes, preprocess: Preprocess) -> tuple[int, int]:
    (decoded,) = preprocess.decode.each(content, [preprocess.reduction])
    return decoded.image.size


def reference(content: bytes, side: int) -> NDArray[np.float64]:
    """Every pixel decoded, then resized and cropped in floating point, one channel at a time."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    wide = int(side * width / height)
    channels = [
        Image.fromarray(channel).resize((wide, side), Image.Resampling.BICUBIC) for channel in pixels.transpose(2, 0, 1)
    ]
    left = round((wide - side) / 2)
    return np.stack([np.asarray(channel)[:, left : left + side] for channel in channels], axis=-1).astype(np.float64)


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_is_a_fraction_of_a_grey_level_from_the_float_reference(name: str, side: int) -> None:
    full, scaled = np.abs(both(photo(name), (side, side)) - reference(photo(name), side).clip(0, 255))
    assert full.mean() < 0.3
    assert scaled.mean() < 0.9
    assert np.percentile(scaled, 99) < 5


@pytest.mark.parametrize(("side", "scale"), SIZES.items())
def test_a_photo_is_decoded_smaller_but_never_below_twice_the_target(side: int, scale: int) -> None:
    found = decoded_size(photo(), Preprocess(size=(side, side), decode=SCALED))
    assert found == (640 // scale, -(-427 // scale))
    assert min(found) >= 2 * side


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        ({"size": (50, 50)}, 4),
        ({"size": (50, 50), "crop_pct": 0.9}, 2),
        ({"size": (50, 80), "resize": "squash"}, 4),
        ({"size": (50, 81), "resize": "squash"}, 2),
        ({"size": (80, 50)}, 2),
        ({"size": (50, 50), "resize": "none"}, 1),
        ({"size": (50, 50), "interpolation": "nearest"}, 1),
        ({"size": (50, 50), "resampler": "torchvision"}, 1),
        ({"size": (50, 50), "decode": Decode()}, 1),
        ({"size": (400, 400)}, 1),
    ],
    ids=str,
)
def test_what_the_resize_needs_before_its_crop_is_the_target(how: dict[str, Any], scale: int) -> None:
    preprocess = Preprocess(**{"decode": SCALED, **how})
    assert decoded_size(jpeg(ramps(640, 400)), preprocess) == (640 // scale, 400 // scale)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("how", [{}, {"resize": "squash"}, {"crop_pct": 0.8}], ids=str)
def test_sizes_that_are_no_multiples_shift_nothing_however_exif_turns_the_image(
    turned: int, how: dict[str, Any]
) -> None:
    content = jpeg(ramps(401, 297), turned=turned)
    assert decoded_size(content, Preprocess(size=(17, 17), decode=SCALED, **how))[0] < 102
    assert apart(content, (17, 17), **how).max() <= 2


def test_an_image_that_is_not_turned_keeps_the_sides_it_is_stored_with() -> None:
    content = jpeg(ramps(641, 100), turned=6)
    stored = Preprocess(size=(40, 9), resize="squash", decode=SCALED.model_copy(update={"orientation": "stored"}))
    upright = Preprocess(size=(40, 9), resize="squash", decode=SCALED)
    assert (decoded_size(content, stored), decoded_size(content, upright)) == ((641, 100), (25, 161))


ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx"
    "NDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjL/yQARCABAAGADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANAdg0OQ7Q4DZ2bhy1s8KOf4wRRx"
    "xTxl2/PXb4YSdPZnVkfA2WKLuQZ+RC8tNuFjfMQDvooO4ANNIM6/cDi9sIcA1q+qPYt0l6cUXLg9Afo+EqA/loVL0Ef1LakS37+6"
    "TW5N5uo6iaLx+la7rUUYumcWTtCcHEQhjVwNsB6vI581nWDNCbQ80s9klmXW44pCPf3SoPLqLtJndaEIazxwIzTsj+LgiRw7GTsk"
    "64MF2w/oCfWF9VFq35uqJUFttEUcB6V7AIRuKPbeCMaIR0cSUVQOjjSZPq4YjeNdjq6liHhkTUhEcDEnBHiU5mFa0S5CpckSKFq9"
    "a0S5CpckOE0b2taJchUuSKRVz+taJcQ1ydWGevUw/9k="
)
"""`RAMPS` as `cjpeg -arithmetic` writes it; Pillow itself writes Huffman codes alone."""

KINDS: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: jpeg(ramps(200, 160), progressive=True),
    "grey": lambda: jpeg(ramps(200, 160).convert("L")),
    "CMYK": lambda: jpeg(ramps(200, 160).convert("CMYK")),
    "subsampled": lambda: jpeg(ramps(200, 160), subsampling=2),
    "of a stereo camera": lambda: jpeg(ramps(200, 160), "mpo", save_all=True, append_images=[ramps(9, 9)]),
    "with restart markers": lambda: jpeg(ramps(200, 160), restart_marker_rows=1),
    "arithmetic": lambda: ARITHMETIC,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_is_scaled_to_nearly_the_same_pixels(kind: str) -> None:
    content = KINDS[kind]()
    assert decoded_size(content, Preprocess(size=(8, 8), decode=SCALED)) in ((24, 16), (25, 20))
    assert apart(content, (8, 8)).mean() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_is_cut_off_is_refused_as_before(kind: str) -> None:
    whole, ways = KINDS[kind](), [Preprocess(size=(8, 8), decode=decode) for decode in (Decode(), SCALED)]
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        said = []
        for way in ways:
            try:
                way.read(whole[:cut])
                said.append("")
            except DataError as fault:
                said.append(str(fault))
        assert said[0] == said[1]
    with pytest.raises(DataError, match="damaged or cut off"):
        ways[1].read(KINDS["progressive"]()[:-400])


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (15, 400)])
def test_what_is_small_in_one_direction_is_decoded_in_full(size: tuple[int, int]) -> None:
    assert apart(jpeg(ramps(*size)), (8, 8)).max() == 0


def test_other_formats_are_decoded_in_full() -> None:
    assert apart(encode(np.asarray(ramps(400, 300)))).max() == 0


def test_what_a_task_reads_does_not_depend_on_the_tasks_that_are_asked_with_it() -> None:
    tasks = [*(Preprocess(size=(side, side), decode=SCALED) for side in (200, 24, 60)), Preprocess(size=(24, 24))]
    for task, together in zip(tasks, read_each(photo(), tasks), strict=True):
        np.testing.assert_array_equal(together, task.read(photo()))
