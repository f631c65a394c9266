"""Small images of the kinds that libraries read differently."""

import io
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 247, 181
"""Odd, so that a crop's margin is too."""


def _smooth(channels: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random colours, eight along each side, and what lies between them."""
    rng = np.random.default_rng(seed)
    grids = rng.integers(0, 256, (channels, 8, 8), dtype=np.uint8)
    size = (WIDTH, HEIGHT)
    return np.stack([np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)) for grid in grids], -1)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def awkward_images() -> dict[str, bytes]:
    """File name -> content."""
    rgb, other = (Image.fromarray(_smooth(3, seed)) for seed in (0, 1))
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = _smooth(1, 2)[..., 0]
    palette = rgb.quantize(16)
    return {
        "transparent.png": _saved(Image.fromarray(_smooth(4, 3)), "PNG"),
        "turned.jpg": _saved(rgb, "JPEG", exif=turned),
        "deep.png": _saved(Image.fromarray(grey.astype(np.uint16) * 16), "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=3),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "grey-alpha.png": _saved(Image.merge("LA", [Image.fromarray(grey), other.getchannel(0)]), "PNG"),
        "bits.png": _saved(Image.fromarray(grey).convert("1"), "PNG"),
        "moving.gif": _saved(palette, "GIF", save_all=True, append_images=[other.quantize(16)]),
        "stereo.mpo": _saved(rgb, "MPO", save_all=True, append_images=[other]),
    }
