"""Read the `preprocessor_config.json` of transformers as a `Preprocess`."""

import math
import re
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from mosa_deploy.bundles.decode import KEYED, TRANSFORMERS
from mosa_deploy.bundles.preprocess import INTERPOLATION, Preprocess
from mosa_deploy.errors import DataError
from mosa_deploy.utils.text import read_json

FILES = ("preprocessor_config.json", "processor_config.json")
"""The names under which transformers saves a processor."""

Resampler = Literal["torchvision", "pillow"]

Settings = dict[str, Any]

HALF = [0.5, 0.5, 0.5]
IMAGENET: Settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP: Settings = {
    "resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "default_to_square": False,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}  # fmt: skip
DEFAULTS: dict[str, Settings] = {
    "": {},
    "ViT": {},
    "DeiT": {"resample": 3, "size": 256, "do_center_crop": True, "crop_size": 224},
    "Beit": {"resample": 3, "crop_size": 224},
    "Siglip": {"resample": 3, "default_to_square": False, "do_convert_rgb": True},
    "CLIP": CLIP,
    "Bit": CLIP,
    "DINOv3ViT": IMAGENET,
    "ConvNext": {"resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "default_to_square": False},
}
"""What each kind of processor does where its file is silent. Kinds that are not here may take other steps."""

DESCRIPTIVE = {
    "data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb", "feature_extractor_type",
    "image_processor_type", "input_data_format", "processor_class", "return_tensors",
}  # fmt: skip
"""Settings that have no effect here: images are always RGB."""

PADDING = {"pad_size", "size_divisor"}
"""Sizes that have no effect unless a `do_*` setting uses them."""

SQUASHED_FROM = 384
"""From this side on, ConvNext's processor squashes images instead of cropping them."""


class Processor(BaseModel):
    """The supported steps: resize, crop the middle, scale to 0..1, normalise. Other settings are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    do_resize: bool = True
    size: dict[str, int] = {"height": 224, "width": 224}
    resample: int = Image.Resampling.BILINEAR
    do_center_crop: bool = False
    crop_size: dict[str, int] | None = None
    crop_pct: float | None = None
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    default_to_square: bool = True
    do_convert_rgb: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_its_kind(cls, given: Any) -> Any:
        """Fill in what the kind of processor does by default, and give sizes of one number their sides."""
        if not isinstance(given, dict):
            return given
        kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
        short = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
        if short not in DEFAULTS:
            raise ValueError(f"image_processor_type {kind}, known are those of {', '.join(filter(None, DEFAULTS))}")
        found = DEFAULTS[short] | {name: value for name, value in given.items() if value is not None}
        square = {"size": found.get("default_to_square", True), "crop_size": True}
        return found | {name: _sides(found[name], equal) for name, equal in square.items() if name in found}

    @field_validator("image_mean", "image_std", mode="before")
    @classmethod
    def _for_each_channel(cls, value: Any) -> Any:
        return [value] * 3 if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _nothing_else(self) -> "Processor":
        """Refuse other steps.

        Raises:
            ValueError: the file has a step that is not supported.
        """
        if not math.isclose(self.rescale_factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(f"rescale_factor {self.rescale_factor}, only 1/255 is known")
        if self.resample not in INTERPOLATION.values():
            raise ValueError(f"resample {self.resample}, known: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic")
        steps = [f"{name} {value}" for name, value in sorted((self.model_extra or {}).items()) if value]
        odd = [step for step in steps if step.partition(" ")[0] not in DESCRIPTIVE | PADDING]
        if odd:
            raise ValueError(f"no such step here: {', '.join(odd)}")
        return self

    def steps(self) -> Settings:
        """How images become the model's size, in the words of `Preprocess`.

        Raises:
            ValueError: they do not all become the same size, or the sizes cannot be kept.
        """
        if self.crop_pct is not None and set(self.size) == {"shortest_edge"}:
            side = self.size["shortest_edge"]
            if side >= SQUASHED_FROM:
                return {"size": (side, side), "resize": "squash"}
            return _cropped("center", (side, side), (int(side / self.crop_pct),) * 2)
        crop = _height_and_width(self.crop_size, "crop_size") if self.do_center_crop else None
        if not self.do_resize:
            if crop is None:
                raise ValueError("do_resize False without do_center_crop: images would keep their sizes")
            return {"size": crop, "resize": "none"}
        if set(self.size) != {"shortest_edge"}:
            whole = _height_and_width(self.size, "size")
            return {"size": whole, "resize": "squash"} if crop is None else _cropped("squash", crop, whole)
        if crop is None:
            raise ValueError("size.shortest_edge without do_center_crop: images would differ in size")
        if crop[0] != crop[1]:
            raise ValueError(f"size.shortest_edge with a crop of {crop[0]} x {crop[1]}: only squares can be kept")
        return _cropped("center", crop, (self.size["shortest_edge"],) * 2)


def _sides(value: Any, square: bool) -> Any:
    """One number as the two sides of a square, or as the shorter side; a pair as height and width."""
    if isinstance(value, int):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _height_and_width(sides: dict[str, int] | None, name: str) -> tuple[int, int]:
    if sides is None or set(sides) != {"height", "width"}:
        raise ValueError(f"{name} {sides}: only a height and a width, or the shortest edge alone, can be kept")
    return sides["height"], sides["width"]


def _cropped(resize: str, crop: tuple[int, int], whole: tuple[int, int]) -> Settings:
    """The middle `crop` of images that were resized to `whole`, by a `crop_pct` that gives `whole` back."""
    if crop[0] > whole[0] or crop[1] > whole[1]:
        raise ValueError(f"crop_size {crop[0]} x {crop[1]} is larger than the resized image")
    pairs = list(zip(crop, whole, strict=True))
    shares = [inner / (outer + more) for more in (0, 0.5) for inner, outer in pairs]
    found = next((s for s in shares if all(math.floor(inner / s) == outer for inner, outer in pairs)), None)
    if found is None:
        raise ValueError(f"a crop of {crop[0]} x {crop[1]} from {whole[0]} x {whole[1]}: only one share can be kept")
    return {"size": crop, "resize": resize, "crop_pct": found}


def read_processor(path: Path, resampler: Resampler = "torchvision", option: str = "--preprocess ") -> Preprocess:
    """Read a `preprocessor_config.json`, or the image processor in a `processor_config.json`.

    transformers resizes with torchvision unless a Pillow processor is asked for; the file does not tell. `option` is
    the command-line option by which the user gave the file, and a space.

    Raises:
        DataError: it is missing or damaged, or has a step that `Preprocess` does not support.
    """
    where = f"{option}{path}"
    content = _read_object(path, where)
    names = {value: name for name, value in INTERPOLATION.items()}
    try:
        found = Processor.model_validate(content.get("image_processor") or content)
        return Preprocess.model_validate(
            {
                **found.steps(),
                "interpolation": names[Image.Resampling(found.resample)],
                "resampler": resampler,
                "crop_offset": "truncated" if resampler == "torchvision" else "floored",
                "mean": found.image_mean if found.do_normalize else (0, 0, 0),
                "std": found.image_std if found.do_normalize else (1, 1, 1),
                "decode": KEYED if found.do_convert_rgb else TRANSFORMERS,
            }
        )
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors()]
    except ValueError as error:
        faults = [str(error)]
    way_out = "only resizing, cropping the middle, scaling by 1/255 and normalising can be kept"
    raise DataError(f"{where}: {'; '.join(faults)}: {way_out}")


def _read_object(path: Path, where: str) -> Settings:
    """The object in a JSON file.

    Raises:
        DataError: there is none.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}; give a preprocessor_config.json") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{where} is not a JSON object: give a preprocessor_config.json")
    return content
