"""From an image's bytes to the backbone's input: the same steps in tuning, in export and in the service.

They are those of timm's evaluation transform or of transformers' image processors, done by numpy and Pillow alone.
Their constants travel with the bundle.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.bundles.decode import Box, Decode, Decoded, Size
from mosa_deploy.bundles.resample import KERNELS, resize

Side = Annotated[int, Field(ge=1, le=4096)]
Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

OFFSETS: dict[str, Callable[[float], int]] = {"rounded": round, "floored": math.floor, "truncated": int}
"""How half of an odd margin becomes whole pixels."""


class Preprocess(BaseModel):
    """Decode, resize, crop and normalise. Where a choice has no comment, timm's data config has it under this name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side]
    """(H, W) in pixels."""
    resize: Literal["center", "squash", "none"] = "center"
    """`center` keeps the aspect ratio and crops the middle; `squash` resizes both sides; `none` only crops the middle,
    with black where an image is smaller."""
    crop_pct: Annotated[float, Field(gt=0.01, le=1)] = 1.0
    """The share of the resized image that the crop keeps."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    resampler: Literal["pillow", "torchvision"] = "pillow"
    """Whose rounding the interpolation has: timm resizes with Pillow, transformers with torchvision."""
    crop_offset: Literal["rounded", "floored", "truncated"] = "rounded"
    """Where a crop begins if the margin is odd: timm rounds, transformers' processors round down or towards zero."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    decode: Decode = Decode()

    @classmethod
    def from_timm(cls, config: dict[str, Any], squash: bool = False) -> Self:
        """From `timm.data.resolve_model_data_config`; `squash` resizes straight to the input size, as VTAB does."""
        squashed = squash or config.get("crop_mode") == "squash"
        return cls(
            size=config["input_size"][1:],
            resize="squash" if squashed else "center",
            crop_pct=1.0 if squash else config["crop_pct"],
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
        )

    @property
    def unresized(self) -> Self:
        """What reads images that have the input's size already, because this has resized and cropped them before."""
        return self.model_copy(update={"resize": "none"})

    def read(self, content: bytes) -> Pixels:
        """An encoded image -> (H, W, 3) uint8.

        Raises:
            DataError: the image cannot be decoded.
        """
        return read_each(content, [self])[0]

    def reduction(self, size: tuple[int, int]) -> float:
        """How many times smaller an image of (W, H) becomes along each side at least, as `Decode.each` asks.

        What another library resizes, and what is not resized by weighing pixels, needs every pixel of the file.
        """
        if self.resize == "none" or self.interpolation == "nearest" or self.resampler != "pillow":
            return 1.0
        height, width = self._resized_to(size)
        return min(size[0] / width, size[1] / height)

    def pixels(self, image: Image.Image, box: Box | None = None) -> Pixels:
        """An RGB image, or the box of it, -> (H, W, 3) uint8."""
        height, width = self.size
        if self.resize != "none":
            image = self._resized(image, box)
        offset = OFFSETS[self.crop_offset]
        top, left = offset((image.height - height) / 2), offset((image.width - width) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)

    def _resized_to(self, size: Size) -> tuple[int, int]:
        """(H, W) to which an image of (W, H) is resized before its crop."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        return _cover(size, (height, width)) if self.resize == "center" else (height, width)

    def _resized(self, image: Image.Image, box: Box | None) -> Image.Image:
        left, top, right, bottom = box or (0, 0, *image.size)
        height, width = self._resized_to((right - left, bottom - top))
        if self.resampler == "torchvision" and self.interpolation in KERNELS:
            return Image.fromarray(resize(np.asarray(image), height, width, KERNELS[self.interpolation]))
        return image.resize((width, height), INTERPOLATION[self.interpolation], box)

    def normalise(self, pixels: Pixels) -> Array:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32: (x / 255 - mean) / std."""
        # Channels first: numpy is ten times slower along a last axis of three.
        images = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        images /= np.float32(255)
        images -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        images /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return images


def read_each(content: bytes, preprocesses: Sequence[Preprocess]) -> list[Pixels]:
    """An encoded image as each of several tasks reads it, (H, W, 3) uint8; what they have in common is done once.

    Raises:
        DataError: the image cannot be decoded.
    """
    decoded: dict[Preprocess, Decoded] = {}
    for policy in {preprocess.decode for preprocess in preprocesses}:
        alike = [preprocess for preprocess in preprocesses if preprocess.decode == policy]
        images = policy.each(content, [preprocess.reduction for preprocess in alike])
        decoded |= zip(alike, images, strict=True)
    return [preprocess.pixels(*decoded[preprocess]) for preprocess in preprocesses]


def _cover(size: Size, target: tuple[int, int]) -> tuple[int, int]:
    """(H, W) that keeps the aspect ratio of (W, H) and covers `target`, rounded as torchvision and timm do."""
    (across, down), (height, width) = size, target
    if height == width:
        short = min(across, down)
        return int(height * down / short), int(width * across / short)
    ratio = min(down / height, across / width)
    return round(down / ratio), round(across / ratio)


def probabilities(logits: Array, temperature: float) -> Array:
    """softmax(logits / temperature) over the last axis: (B, K) -> (B, K)."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True), dtype=np.float32)
