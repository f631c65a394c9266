"""Turns the bytes that a client sent into pixels. They are checked before they are decoded."""

import re
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from mosa_deploy.bundles.decode import open_image
from mosa_deploy.bundles.image_size import size_fault
from mosa_deploy.bundles.preprocess import Pixels, Preprocess, read_each
from mosa_deploy.errors import DataError
from serving.errors import RequestError


def read_pixels(content: bytes, preprocesses: Sequence[Preprocess], max_pixels: int) -> list[Pixels]:
    """The pixels (H, W, 3) for each preprocess.

    Raises:
        RequestError: 415 if the content is no image, 400 if the image is too large, too narrow or damaged.
    """
    for preprocess in preprocesses:
        check_size(_size(content), preprocess, max_pixels)
    try:
        return read_each(content, preprocesses)
    except DataError as fault:
        raise RequestError(400, str(fault)) from None
    except (ValueError, MemoryError, OSError) as fault:
        raise RequestError(400, f"not a usable image ({type(fault).__name__}): send a PNG, JPEG or WebP file") from None


def check_size(size: tuple[int, int], preprocess: Preprocess, max_pixels: int) -> None:
    """Refuse an image that would take too much memory, as it is or resized to the input's shorter side.

    Raises:
        RequestError: 400.
    """
    fault = size_fault(size, preprocess, max_pixels)
    if fault is not None:
        way_out = "crop the image" if fault.endswith("narrow") else "send a smaller image"
        raise RequestError(400, f"{fault}: {way_out}")


def is_image(content: bytes) -> bool:
    """Whether the content begins as an image of a known type does, whole or not; nothing is decoded."""
    try:
        with open_image(content):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # What Pillow lets out on damaged bytes, it lets out after it has found the type.
        return True


KINDS = (
    (rb"\x1f\x8b", "gzip, which Content-Encoding: gzip would have to say"),
    (rb"PK\x03\x04", "a zip file"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS", "PostScript"),
    (rb"....ftyp(isom|mp4|avc|M4V|qt  )", "a video"),
    (rb"(\xef\xbb\xbf)?\s*<", "SVG, HTML or XML"),
    (rb"\xef\xbf\xbd|\xc3\xbf\xc3\x98|\xc2\x89PNG", "an image whose bytes were read as text, which spoils them"),
)
"""How files begin that people send by mistake, and what they are."""


def foreign_kind(content: bytes) -> str | None:
    """What a content is that is no image but begins as another known kind of file does; None if nobody knows."""
    return next((words for start, words in KINDS if re.match(start, content, re.DOTALL)), None)


def _no_image(content: bytes) -> str:
    """What is said of a content that no decoder knows."""
    kind = foreign_kind(content)
    return f"not an image of a known type{f', but {kind}' if kind else ''}: send a PNG, JPEG or WebP file"


def _size(content: bytes) -> tuple[int, int]:
    """(W, H) from the file's header; nothing is decoded."""
    if not content:
        raise RequestError(415, "the image is empty, 0 bytes: send a PNG, JPEG or WebP file")
    try:
        with open_image(content) as image:
            return image.size
    except DataError as fault:
        raise RequestError(415, str(fault)) from None
    except UnidentifiedImageError:
        raise RequestError(415, _no_image(content)) from None
    except Image.DecompressionBombError as fault:
        raise RequestError(400, f"{fault}: send a smaller image") from None
    except Exception as fault:  # On damaged bytes Pillow lets out struct.error, TypeError and RuntimeError too.
        raise RequestError(
            400, f"not a readable image ({type(fault).__name__}): send a PNG, JPEG or WebP file"
        ) from None
