"""Resize as torchvision does on a CPU, with numpy alone, to the last bit.

transformers' image processors resize with torchvision, timm and we with Pillow. Both take the same weighted means, but
torchvision rounds the weights to 16 bits: one value in 500 differs by a grey level, which moves probabilities by 1e-4.
On a GPU, and for bilinear on processors without AVX2, torchvision itself rounds otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Doubles = NDArray[np.float64]

MAX_PRECISION = 22
"""The largest number of fractional bits of a weight."""


class Kernel(NamedTuple):
    """A filter, and the distance from its centre beyond which it is zero, in pixels of the smaller image."""

    weigh: Callable[[Doubles], Doubles]
    support: float


def _bilinear(x: Doubles) -> Doubles:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _bicubic(x: Doubles) -> Doubles:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Doubles) -> Doubles:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS = {"bilinear": Kernel(_bilinear, 1.0), "bicubic": Kernel(_bicubic, 2.0), "lanczos": Kernel(_lanczos, 3.0)}
"""The filters by the names of `Preprocess.interpolation`; nearest, which weighs nothing, is the same in Pillow."""


def resize(pixels: Pixels, height: int, width: int, kernel: Kernel) -> Pixels:
    """(H, W, 3) -> (height, width, 3), first the width and then the height, each rounded to 8 bits."""
    if width != pixels.shape[1]:
        columns = np.ascontiguousarray(pixels.transpose(1, 0, 2))
        pixels = np.ascontiguousarray(_resize_rows(columns, width, kernel).transpose(1, 0, 2))
    return pixels if height == pixels.shape[0] else _resize_rows(pixels, height, kernel)


def _resize_rows(pixels: Pixels, count: int, kernel: Kernel) -> Pixels:
    """(N, ...) -> (count, ...)."""
    taps = _taps(len(pixels), count, kernel)
    # Integers far below 2^53, so that doubles, which a BLAS multiplies, are exact.
    largest = max(weights.max() for _, weights in taps)
    fits = (bits for bits in range(MAX_PRECISION) if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15)
    one = float(1 << next(fits, MAX_PRECISION))
    flat = pixels.reshape(len(pixels), -1)
    resized = np.empty((count, flat.shape[1]), dtype=np.uint8)
    for row, (first, weights) in enumerate(taps):
        rounded = np.trunc(weights * one + np.copysign(0.5, weights))
        total = rounded @ flat[first : first + len(weights)].astype(np.float64)
        resized[row] = np.clip(np.floor((total + one / 2) / one), 0, 255)
    return resized.reshape(count, *pixels.shape[1:])


def _taps(size: int, count: int, kernel: Kernel) -> list[tuple[int, Doubles]]:
    """For each of `count` pixels along a side of `size`: the first pixel that it is made of, and their weights."""
    scale = size / count
    stretch = max(scale, 1.0)
    taps = []
    for i in range(count):
        centre, reach = scale * (i + 0.5), kernel.support * stretch
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
        weights = kernel.weigh((np.arange(first, end, dtype=np.float64) - centre + 0.5) / stretch)
        taps.append((first, weights / weights.sum()))
    return taps
