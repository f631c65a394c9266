"""transformers' image processors, said in the bundle's words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessor, ViTImageProcessorPil

from export.processor import read_processor
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError

ODD = {
    "size": {"height": 48, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


@pytest.mark.parametrize("settings", [{}, ODD, {**ODD, "resample": 3}, {**ODD, "do_normalize": False}])
def test_what_transformers_saves_gives_the_same_input(tmp_path: Path, settings: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    processor = ViTImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    preprocess = read_processor(tmp_path / "preprocessor_config.json")
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    given = preprocess.normalise(preprocess.pixels(image)[None])
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
    # torchvision rounds some pixels of a resized image the other way than Pillow.
    ViTImageProcessor(**settings).save_pretrained(tmp_path)
    assert read_processor(tmp_path / "preprocessor_config.json") == preprocess


def test_an_older_file_with_one_side_is_a_square(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"size": 96, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "crop_size": 96}')
    assert read_processor(path) == Preprocess(size=(96, 96), resize="squash", interpolation="bilinear")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"do_center_crop": True, "crop_size": 224}, "no such step here: do_center_crop True"),
        ({"size": {"shortest_edge": 256}}, "size.shortest_edge Extra inputs are not permitted"),
        ({"do_resize": False}, "do_resize Input should be True"),
        ({"do_rescale": False}, "do_rescale Input should be True"),
        ({"rescale_factor": 0.5}, "rescale_factor 0.5, only 1/255 is known"),
        ({"resample": 4}, "resample 4, known: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"size": None}, "size Input should be a valid dictionary"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"size": {"height": 32, "width": 32}} | change))
    with pytest.raises(DataError) as caught:
        read_processor(path)
    assert fault in str(caught.value)
    assert str(caught.value).endswith(
        ": only resizing to a height and width, scaling by 1/255 and normalising can be kept"
    )
    assert "\n" not in str(caught.value)


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
