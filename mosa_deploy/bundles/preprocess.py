"""From an image's bytes to the backbone's input: the same steps in tuning, in export and in the service.

They are those of timm's evaluation transform, done by numpy and Pillow alone, and their constants travel with the
bundle.
"""

import io
import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.errors import DataError

Side = Annotated[int, Field(ge=1, le=4096)]
Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "TIFF", "PPM", "TGA")
"""The formats that are read, by Pillow's names. It knows more, but to read EPS it would start another program."""

INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def decode(content: bytes) -> Image.Image:
    """The first frame of an encoded image as upright RGB of 8 bits.

    Grey of 16 bits is scaled, round(v / 257). Transparent pixels are laid over white, so that the colours that a file
    hides in them do not show. CMYK, palettes and the rest become RGB as Pillow converts them.

    Raises:
        DataError: the bytes are not an image that Pillow can read, or one whose values have no agreed white.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # On damaged bytes Pillow also raises struct.error, TypeError and RuntimeError.
        raise DataError(f"not a readable image ({type(error).__name__}): send a PNG, JPEG or WebP file") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("a floating-point image (mode F) has no agreed white: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image), image.info.get("transparency"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGB", layer.size, "white")
    ground.paste(layer, mask=layer)
    return ground


def _from_16_bits(values: NDArray[Any], transparent: int | None) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"a grey image with values from {values.min()} to {values.max()}: save it with 8 or 16 bits")
    grey = (values.astype(np.int64) + 128) // 257
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def encode(pixels: Pixels) -> bytes:
    """Pixels (H, W, 3) as a lossless PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


class Preprocess(BaseModel):
    """Resize, crop and normalise, as timm's data config says."""

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
