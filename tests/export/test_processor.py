"""transformers' image processors, said in the bundle's words."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessor, ViTImageProcessorPil

from export.processor import Resampler, read_processor
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError

ODD = {
    "size": {"height": 48, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


@pytest.mark.parametrize("settings", [{}, ODD, {**ODD, "resample": 3}, {**ODD, "do_normalize": False}])
@pytest.mark.parametrize("resampler", ["torchvision", "pillow"])
def test_what_transformers_saves_gives_the_same_input(
    tmp_path: Path, settings: dict[str, Any], resampler: Resampler
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    kind: Any = ViTImageProcessor if resampler == "torchvision" else ViTImageProcessorPil
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)
    preprocess = read_processor(tmp_path / "preprocessor_config.json", resampler)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    given = preprocess.normalise(preprocess.pixels(image)[None])
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)


def read(tmp_path: Path, **content: Any) -> Preprocess:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    return read_processor(path)


def test_an_older_file_with_one_side_is_a_square(tmp_path: Path) -> None:
    older = read(tmp_path, size=96, feature_extractor_type="ViTFeatureExtractor", resample=2, crop_size=96)
    assert (older.size, older.resize, older.interpolation) == ((96, 96), "squash", "bilinear")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ViTImageProcessorFast", {"size": (224, 224), "resize": "squash", "interpolation": "bilinear"}),
        ("DeiTFeatureExtractor", {"size": (224, 224), "resize": "squash", "crop_pct": 0.875}),
        ("CLIPImageProcessor", {"size": (224, 224), "resize": "center", "interpolation": "bicubic"}),
        ("ConvNextImageProcessorPil", {"size": (384, 384), "resize": "squash"}),
        ("SiglipImageProcessor", {"resize": "squash", "interpolation": "bicubic"}),
        (
            "DINOv3ViTImageProcessorFast",
            {"resize": "squash", "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406)},
        ),
    ],
)
def test_a_file_that_is_silent_does_what_its_kind_does(tmp_path: Path, kind: str, expected: dict[str, Any]) -> None:
    assert read(tmp_path, image_processor_type=kind, size=None).model_dump().items() >= expected.items()


def test_a_crop_gives_back_the_size_that_was_resized_to(tmp_path: Path) -> None:
    for whole in range(160, 700):
        found = read(tmp_path, size={"shortest_edge": whole}, do_center_crop=True, crop_size=160)
        assert math.floor(160 / found.crop_pct) == whole


def test_the_processor_of_a_pair_is_read_out_of_it(tmp_path: Path) -> None:
    nested = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 96, "width": 96}}
    assert read(tmp_path, image_processor=nested, processor_class="SiglipProcessor").size == (96, 96)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"do_center_crop": True, "crop_size": 224}, "crop_size 224 x 224 is larger than the resized image"),
        ({"size": {"shortest_edge": 256}}, "size.shortest_edge without do_center_crop: images would differ in size"),
        (
            {"size": {"shortest_edge": 256, "longest_edge": 300}},
            "only a height and a width, or the shortest",
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 64, "width": 32}},
            "size.shortest_edge with a crop of 64 x 32: only squares can be kept",
        ),
        ({"do_resize": False}, "do_resize False without do_center_crop: images would keep their sizes"),
        ({"do_rescale": False}, "do_rescale Input should be True"),
        ({"rescale_factor": 0.5}, "rescale_factor 0.5, only 1/255 is known"),
        ({"do_pad": True}, "no such step here: do_pad True"),
        ({"resample": 4}, "resample 4, known: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic"),
        ({"image_mean": [0.5]}, "image_mean"),
        (
            {"image_processor_type": "EfficientNetImageProcessor"},
            "EfficientNetImageProcessor, known are",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, **{"size": {"height": 32, "width": 32}} | change)
    assert fault in str(caught.value)
    assert str(caught.value).endswith(
        ": only resizing, cropping the middle, scaling by 1/255 and normalising can be kept"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_was_saved_on_windows_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes('{\r\n"size": 96\r\n}'.encode(encoding))
    assert read_processor(path).size == (96, 96)


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(
        DataError, match=r"^--preprocess .*p\.json: No such file or directory; give a preprocessor_config"
    ):
        read_processor(path)
    path.write_text("{")
    with pytest.raises(
        DataError, match=r"^--preprocess .*p\.json is not a JSON object: give a preprocessor_config\.json$"
    ):
        read_processor(path)
