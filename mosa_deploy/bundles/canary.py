"""The canary: a few validation images as encoded bytes, with the probabilities that the tuned model gave them.

It travels inside the bundle. It proves that bytes still become the same probabilities, wherever the task runs: in
another format, or on other hardware.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from mosa_deploy.bundles.image_size import size_fault
from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.errors import BundleError

SIZE = 8
"""The number of images in a canary, if there are as many."""
CANARY_PIXELS = 50_000_000
"""The most pixels of one of its images that a service decodes."""
FILE_BYTES = 256 << 10
"""A file is kept as it is up to this size. Eight photos of a phone would make a bundle too large to be uploaded."""
STORED_PIXELS = 640 * 480
"""The most pixels of an image that is kept in the place of a larger file."""
PREFIX = "canary."


@dataclass(frozen=True)
class Canary:
    """Encoded images with their probabilities (n, K), fp32, after the temperature."""

    images: tuple[bytes, ...]
    probabilities: Array

    @classmethod
    def record(cls, images: Sequence[bytes], preprocess: Preprocess, predict: Callable[[Array], Array]) -> Self:
        """Keep images with the probabilities (n, K) that `predict` gives for their inputs (n, 3, H, W).

        A small image takes the place of a large one; the probabilities are those of what is kept.

        Raises:
            DataError: an image cannot be decoded.
        """
        canary = cls(tuple(kept(content, preprocess) for content in images), np.empty((0, 0), dtype=np.float32))
        return cls(canary.images, predict(canary.inputs(preprocess)))

    def pixels(self, preprocess: Preprocess) -> Pixels:
        """The decoded images (n, H, W, 3)."""
        return np.stack([preprocess.read(content) for content in self.images])

    def inputs(self, preprocess: Preprocess) -> Array:
        """The backbone's input (n, 3, H, W)."""
        return preprocess.normalise(self.pixels(preprocess))

    def error(self, probabilities: Array) -> float:
        """The largest difference from any recorded probability; NaN counts as infinite."""
        if probabilities.shape != self.probabilities.shape:
            return float("inf")
        if not (np.isfinite(probabilities).all() and np.isfinite(self.probabilities).all()):
            return float("inf")
        return float(np.abs(probabilities - self.probabilities).max())

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """The tensors that hold it in the bundle's safetensors file."""
        return {
            f"{PREFIX}bytes": np.frombuffer(b"".join(self.images), dtype=np.uint8),
            f"{PREFIX}lengths": np.array([len(content) for content in self.images], dtype=np.int64),
            f"{PREFIX}probabilities": self.probabilities,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray[np.generic]]) -> Self:
        """Make a canary of the tensors that `to_tensors` returned.

        Raises:
            BundleError: a tensor is missing or the lengths do not add up.
        """
        try:
            content = tensors[f"{PREFIX}bytes"].tobytes()
            lengths = tensors[f"{PREFIX}lengths"]
            probabilities = tensors[f"{PREFIX}probabilities"].astype(np.float32)
        except KeyError as error:
            raise BundleError(f"the bundle has no {error.args[0]}: tune the task again") from None
        ends = np.cumsum(lengths).tolist()
        if not ends or ends[-1] != len(content) or len(ends) != len(probabilities):
            raise BundleError("the bundle's canary is inconsistent: tune the task again")
        starts = [0, *ends[:-1]]
        return cls(tuple(content[start:end] for start, end in zip(starts, ends, strict=True)), probabilities)


def kept(content: bytes, preprocess: Preprocess) -> bytes:
    """The file itself if it is small, else its middle as a JPEG of the input's shape, and at most twice its size.

    Raises:
        DataError: the image cannot be decoded.
    """
    image = preprocess.decode.image(content)
    if len(content) <= FILE_BYTES and size_fault(image.size, preprocess, CANARY_PIXELS) is None:
        return content
    height, width = preprocess.size
    scale = min(2.0, math.sqrt(STORED_PIXELS / (height * width)))
    buffer = io.BytesIO()
    ImageOps.fit(image, (round(scale * width), round(scale * height))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
