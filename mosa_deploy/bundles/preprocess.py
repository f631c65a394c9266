"""From an image's bytes to the backbone's input: the same steps in tuning, in export and in the service.

They are those of timm's evaluation transform, done by numpy and Pillow alone. Their constants travel with the bundle.
"""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.bundles.decode import Decode

Side = Annotated[int, Field(ge=1, le=4096)]
Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


class Preprocess(BaseModel):
    """Decode, resize, crop and normalise; all but the first as timm's data config says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side]
    """(H, W) in pixels."""
    resize: Literal["center", "squash"] = "center"
    """`center` keeps the aspect ratio and crops the middle; `squash` resizes both sides."""
    crop_pct: Annotated[float, Field(gt=0.01, le=1)] = 1.0
    """The share of the resized image that the crop keeps."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
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

    def read(self, content: bytes) -> Pixels:
        """An encoded image -> (H, W, 3) uint8.

        Raises:
            DataError: the image cannot be decoded.
        """
        return self.pixels(self.decode.image(content))

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image -> (H, W, 3) uint8."""
        height, width = self.size
        target = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if self.resize == "center":
            target = _cover(image, target)
        image = image.resize((target[1], target[0]), INTERPOLATION[self.interpolation])
        top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)

    def normalise(self, pixels: Pixels) -> Array:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32: (x / 255 - mean) / std."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        normal = (scaled - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def _cover(image: Image.Image, target: tuple[int, int]) -> tuple[int, int]:
    """(H, W) that keeps the aspect ratio and covers `target`, rounded as torchvision and timm do."""
    height, width = target
    if height == width:
        short = min(image.height, image.width)
        return int(height * image.height / short), int(width * image.width / short)
    ratio = min(image.height / height, image.width / width)
    return round(image.height / ratio), round(image.width / ratio)


def probabilities(logits: Array, temperature: float) -> Array:
    """softmax(logits / temperature) over the last axis: (B, K) -> (B, K)."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True), dtype=np.float32)
