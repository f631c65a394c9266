"""Read the `preprocessor_config.json` of transformers as a `Preprocess`."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from mosa_deploy.bundles.preprocess import INTERPOLATION, Preprocess
from mosa_deploy.errors import DataError

DESCRIPTIVE = {
    "data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb", "feature_extractor_type",
    "image_processor_type", "input_data_format", "processor_class", "return_tensors",
}  # fmt: skip
"""Settings that have no effect here: images are always RGB, and a size is always a height and a width."""

CROP_OR_PAD = {"crop_size", "pad_size", "size_divisor"}
"""Sizes that have no effect unless a `do_*` setting uses them."""


class Side(BaseModel):
    """Height and width in pixels. Other fields, such as `shortest_edge`, are refused."""

    model_config = ConfigDict(extra="forbid")

    height: int
    width: int


class Processor(BaseModel):
    """The supported steps: resize straight to `size`, scale to 0..1, normalise. Other settings are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    do_resize: Literal[True] = True
    size: Side
    resample: int = Image.Resampling.BILINEAR
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return {"height": value, "width": value} if isinstance(value, int) else value

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
        idle = DESCRIPTIVE | CROP_OR_PAD
        steps = [f"{name} {value}" for name, value in sorted((self.model_extra or {}).items()) if value]
        odd = [step for step in steps if step.partition(" ")[0] not in idle]
        if odd:
            raise ValueError(f"no such step here: {', '.join(odd)}")
        return self


def read_processor(path: Path) -> Preprocess:
    """Read a `preprocessor_config.json`.

    Raises:
        DataError: it is missing or damaged, or has a step that `Preprocess` does not support.
    """
    try:
        found = Processor.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise DataError(f"--preprocess {path}: {error.strerror}; give a preprocessor_config.json") from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
        way_out = "only resizing to a height and width, scaling by 1/255 and normalising can be kept"
        raise DataError(f"--preprocess {path}: {'; '.join(faults)}: {way_out}") from None
    except ValueError:
        raise DataError(f"--preprocess {path} is not a JSON object: give a preprocessor_config.json") from None
    names = {value: name for name, value in INTERPOLATION.items()}
    return Preprocess.model_validate(
        {
            "size": (found.size.height, found.size.width),
            "resize": "squash",
            "interpolation": names[Image.Resampling(found.resample)],
            "mean": found.image_mean if found.do_normalize else (0, 0, 0),
            "std": found.image_std if found.do_normalize else (1, 1, 1),
        }
    )
