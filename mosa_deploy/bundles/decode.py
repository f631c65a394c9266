"""From an image's bytes to upright RGB of 8 bits, by the policy that travels with the bundle.

Libraries disagree about what a file shows: where EXIF says is up, what lies behind transparent pixels, which value of
16-bit grey is white. A task is answered as it was tuned, so each bundle keeps its choices.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.bundles import heif
from mosa_deploy.bundles.tiff_bands import check_bands
from mosa_deploy.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "TIFF", "PPM", "TGA")
"""The formats that are read, by Pillow's names. It knows more, but to read EPS it would start another program.

A stereo camera's MPO begins as a JPEG does, and is read as one. HEIC is read if the extra `heif` is installed.
"""

PILLOW_PIXELS = 178_956_970
"""The most pixels of an image that Pillow opens by itself."""


def open_image(content: bytes) -> Image.Image:
    """Open an encoded image; only its header is read.

    Raises:
        DataError: it is HEIC, and the extra is not installed, or a TIFF with more bands than a photo.
        Exception: the bytes are not an image. Pillow raises struct.error, TypeError and RuntimeError too.
    """
    if heif.is_heif(content):
        heif.require()
        return Image.open(io.BytesIO(content), formats=(heif.FORMAT,))
    check_bands(content)
    return Image.open(io.BytesIO(content), formats=FORMATS)


JpegDecoding = Literal["full", "scaled"]

JPEGS = ("JPEG", "MPO")
SCALES = (8, 4, 2)
"""By how much a JPEG decoder can make an image smaller."""
LEAST = 2
"""How many times as large as it is resized to an image is decoded at least: resizing still weighs several pixels."""
TRANSPOSED = 5
"""From this orientation of EXIF on, width and height change places."""

Size = tuple[float, float]
"""(W, H)."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
Reduction = Callable[[tuple[int, int]], float]
"""How many times smaller an upright image of this size will be made along each side, at least."""


class Decoded(NamedTuple):
    """An image, upright and in RGB."""

    image: Image.Image
    box: Box | None = None
    """The part of it that the file shows, if that is not all: a decoder that makes an image smaller fills up its last
    column and row."""


WHITE_16 = 65535
"""The largest value of 16 bits."""


class Decode(BaseModel):
    """How the bytes of an image become its first frame, in RGB of 8 bits. The defaults are those of our own tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    orientation: Literal["exif", "stored"] = "exif"
    """`exif` turns the image as its EXIF data say; `stored` leaves it as the file stores it."""
    transparency: Literal["white", "dropped", "keyed"] = "white"
    """`white` lays transparent pixels over white; `dropped` shows the colours that the file hides in them. `keyed`
    lays only the colour over white that a file names as transparent, and drops an alpha channel."""
    grey16: Literal["scaled", "pillow"] = "scaled"
    """`scaled` maps 0 to `white` on black to white; `pillow` cuts off at 255, as Pillow's own conversion does."""
    white: Annotated[int, Field(ge=1, le=WHITE_16)] = WHITE_16
    """The value of 16-bit grey that becomes white: 4095 for a camera of 12 bits."""

    jpeg: JpegDecoding = "full"
    """`scaled` lets the JPEG decoder itself make a large photo smaller, by 2, 4 or 8, but never below twice the size to
    which it is resized; `full` decodes every pixel."""

    def image(self, content: bytes) -> Image.Image:
        """The first frame of an encoded image. CMYK, palettes and the rest become RGB as Pillow converts them.

        Raises:
            DataError: the bytes are not an image that Pillow can read, or one whose values have no agreed white.
        """
        (decoded,) = self.each(content, [_kept])
        return decoded.image

    def each(self, content: bytes, reductions: Sequence["Reduction"]) -> list["Decoded"]:
        """The image for each of several uses, as it would be decoded for that use alone.

        Raises:
            DataError: see `image`.
        """
        with _opened(content) as image:
            scales = [self._scale(image, reduction) for reduction in reductions]
            found = {scales[0]: self._decoded(image, scales[0])}
        for scale in {*scales} - found.keys():
            with _opened(content) as image:
                found[scale] = self._decoded(image, scale)
        return [found[scale] for scale in scales]

    def _scale(self, image: Image.Image, reduction: "Reduction") -> int:
        """By how much the decoder may make the image smaller."""
        if self.jpeg == "full" or image.format not in JPEGS:
            return 1
        size = image.size if self._orientation(image) < TRANSPOSED else image.size[::-1]
        most = reduction(size) / LEAST
        return next((scale for scale in SCALES if scale <= most), 1)

    def _decoded(self, image: Image.Image, scale: int) -> "Decoded":
        box = None
        if scale > 1 and (drafted := image.draft(None, (image.width // scale, image.height // scale))):
            _, (_, _, *shown) = drafted
            box = _upright(image.size, (shown[0], shown[1]), self._orientation(image))
        return Decoded(self._rgb(ImageOps.exif_transpose(image) if self.orientation == "exif" else image), box)

    def _orientation(self, image: Image.Image) -> int:
        """How the image is to be turned, by EXIF's numbers."""
        number = image.getexif().get(ExifTags.Base.Orientation, 1) if self.orientation == "exif" else 1
        return number if number in range(1, 9) else 1

    def _rgb(self, image: Image.Image) -> Image.Image:
        if self.grey16 == "scaled" and image.mode == "F":
            raise DataError(
                "a floating-point image (mode F) has no agreed white: save it with 8 or 16 bits per channel"
            )
        if self.grey16 == "scaled" and image.mode.startswith("I"):
            return self._scaled(np.asarray(image), image.info.get("transparency"))
        if not image.has_transparency_data:
            return image.convert("RGB")
        if self.transparency == "white":
            return _over_white(image)
        if self.transparency == "dropped" or isinstance(image.info.get("transparency"), bytes):
            return image.convert("RGBA").convert("RGB")
        rgb = image.convert("RGB")  # It still names its transparent colour, unless it had an alpha channel.
        return _over_white(rgb) if rgb.has_transparency_data else rgb

    def _scaled(self, values: NDArray[Any], transparent: int | None) -> Image.Image:
        """round(255 v / white), at most 255."""
        if values.min() < 0 or values.max() > WHITE_16:
            raise DataError(
                f"a grey image with values from {values.min()} to {values.max()}: save it with 8 or 16 bits"
            )
        grey = np.minimum((255 * values.astype(np.int64) + self.white // 2) // self.white, 255)
        if transparent is not None and self.transparency == "white":
            grey[values == transparent] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _kept(_: tuple[int, int]) -> float:
    """The `Reduction` of what is not resized."""
    return 1.0


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image to decode it, and say in one line what is wrong with it."""
    try:
        with open_image(content) as image:
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"too large an image ({error}): make it smaller") from None
    except Exception as error:  # On damaged bytes Pillow also raises struct.error, TypeError and RuntimeError.
        raise DataError(f"not a readable image ({_reason(content, error)}") from error


def _upright(size: tuple[int, int], shown: Size, orientation: int) -> Box | None:
    """Where the shown part (W, H) of an image lies once EXIF has turned it; None if all of it is shown.

    As it is stored, what is not shown lies at the right and at the bottom.
    """
    if shown == size:
        return None
    sides = [(size[0], shown[0]), (size[1], shown[1])]
    (width, across), (height, down) = sides[::-1] if orientation >= TRANSPOSED else sides
    left = width - across if orientation in (2, 3, 6, 7) else 0.0
    top = height - down if orientation in (3, 4, 7, 8) else 0.0
    return left, top, left + across, top + down


def _reason(content: bytes, error: Exception) -> str:
    """Why the content cannot be decoded, and the way out."""
    start = content[:256].lstrip().lower()
    if not content:
        return "an empty file): copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS): fetch the image itself with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page): download the image itself"
    broken = isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError)
    return f"{type(error).__name__}){', damaged or cut off' if broken else ''}: give a PNG, JPEG or WebP file"


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    ground = Image.new("RGB", layer.size, "white")
    ground.paste(layer, mask=layer)
    return ground


TRANSFORMERS = Decode(transparency="dropped", grey16="pillow")
"""What `transformers.image_utils.load_image` does."""

KEYED = TRANSFORMERS.model_copy(update={"transparency": "keyed"})
"""What a processor of transformers with `do_convert_rgb` makes of that: it finds the colour that is still named."""

TIMM = Decode(orientation="stored", transparency="dropped", grey16="pillow")
"""What the data sets of timm and torchvision do: `Image.open(file).convert("RGB")`."""


def allow_pixels(most: int) -> None:
    """Let Pillow open images of up to `most` pixels without a warning; its own limit is never lowered."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, most)


def encode(pixels: NDArray[np.uint8], kind: str = "png", **options: int) -> bytes:
    """Pixels (H, W, 3) as a file: a lossless PNG, or of another kind with Pillow's options for it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
