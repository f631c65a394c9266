import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mosa_deploy.errors import DataError
from tests.support.images import PREPROCESS, random_images
from training.data import check_classes, decode_all, normalise
from training.tasks.base import Example


def examples(count: int) -> list[Example]:
    """PNGs of one grey level each, its index; the label is the index modulo 2."""
    made = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (i, i, i)).save(buffer, format="png")
        made.append(Example(f"grey/{i}", buffer.getvalue, i % 2))
    return made


def test_decoded_images_keep_order_label_and_size() -> None:
    images = decode_all(examples(6), PREPROCESS, "training")
    assert images.pixels.shape == (6, 16, 16, 3)
    assert images.pixels.dtype == torch.uint8
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_one_percent_unreadable_is_named_counted_and_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    given = examples(100)
    given[7] = Example("grey/7", lambda: b"not an image", 1)
    images = decode_all(given, PREPROCESS, "training")
    assert len(images) == len(images.examples) == 99
    assert images.pixels[6:8, 0, 0, 0].tolist() == [6, 8]
    assert images.labels[6:8].tolist() == [0, 0]
    errors = capsys.readouterr().err
    assert "skipped grey/7: not a readable image" in errors
    assert "skipped 1 of 100 training images" in errors


def test_file_that_vanished_counts_as_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*examples(100), Example("grey/gone", (tmp_path / "gone.png").read_bytes, 0)]
    assert len(decode_all(given, PREPROCESS, "test")) == 100
    assert "skipped grey/gone" in capsys.readouterr().err


def test_above_one_percent_unreadable_stops_in_one_line_with_the_first_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = examples(100)
    given[3] = given[4] = Example("grey/bad", lambda: b"", 0)
    said = (
        r"^2 of 100 validation images are unreadable, repair or remove them; first grey/bad: not a readable image .*$"
    )
    with pytest.raises(DataError, match=said):
        decode_all(given, PREPROCESS, "validation")
    assert capsys.readouterr().err == ""


def test_no_image_at_all_is_said() -> None:
    with pytest.raises(DataError, match="there are no test images"):
        decode_all([], PREPROCESS, "test")


def test_normalise_is_the_formula_and_equals_the_service() -> None:
    pixels = random_images(3, 2).pixels
    given = normalise(pixels, PREPROCESS)
    assert given.dtype == torch.float32
    formula = (pixels.double() / 255 - torch.tensor(PREPROCESS.mean).double()) / torch.tensor(PREPROCESS.std).double()
    np.testing.assert_allclose(given.numpy(), formula.permute(0, 3, 1, 2).numpy(), atol=1e-6)
    np.testing.assert_array_max_ulp(given.numpy(), PREPROCESS.normalise(pixels.numpy()), maxulp=1)


def test_task_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="has 1 class: classification needs at least two"):
        check_classes(random_images(4, 1), ["oak"], "training")


def test_classes_without_an_image_are_named() -> None:
    images = random_images(4, 2)
    check_classes(images, ["oak", "ash"], "training")
    with pytest.raises(DataError, match=r"^no training image of class elm, fir: add images or remove the class$"):
        check_classes(images, ["oak", "ash", "elm", "fir"], "training")
