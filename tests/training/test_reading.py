import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mosa_deploy.bundles.decode import encode
from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import PREPROCESS
from training.reading import Reader, decode_all
from training.tasks.base import Example
from training.tune_options import ReadOptions


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
    assert "unreadable training image grey/7: not a readable image" in errors
    assert "1 of 100 images are unreadable and left out" in errors


def test_file_that_vanished_counts_as_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*examples(100), Example("grey/gone", (tmp_path / "gone.png").read_bytes, 0)]
    assert len(decode_all(given, PREPROCESS, "test")) == 100
    assert "unreadable test image grey/gone: No such file or directory" in capsys.readouterr().err


def test_above_the_limit_every_unreadable_image_of_every_set_is_listed_before_it_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(PREPROCESS)
    for name, places in (("train", [3, 4]), ("validation", [0])):
        given = examples(10)
        for place in places:
            given[place] = Example(f"grey/bad{place}", lambda: b"", 0)
        reader.images(given, name)
    with pytest.raises(DataError) as caught:
        reader.finish(tmp_path / "unreadable.csv")
    assert str(caught.value).startswith(
        f"3 of 20 images are unreadable, listed in {tmp_path}/unreadable.csv, and --max-unreadable 1% allows 0: repair"
        " or remove them, or raise the limit; first grey/bad3: not a readable image"
    )
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "unreadable train image grey/bad3",
        "unreadable train image grey/bad4",
        "unreadable validation image grey/bad0",
    ]
    with (tmp_path / "unreadable.csv").open(newline="") as handle:
        assert [row["file"] for row in csv.DictReader(handle)] == ["grey/bad3", "grey/bad4", "grey/bad0"]


def test_many_unreadable_images_are_in_the_file_and_twenty_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(PREPROCESS, ReadOptions(max_unreadable="30"))
    reader.images([Example(f"bad{i}", lambda: b"", 0) for i in range(30)], "train")
    (line,) = reader.finish(tmp_path / "unreadable.csv")
    assert line == "30 of 30 images are unreadable and left out, see unreadable.csv"
    assert capsys.readouterr().err.count("unreadable train image") == 20
    assert (tmp_path / "unreadable.csv").read_text().count("bad") == 30


def test_one_bad_validation_image_of_twenty_does_not_stop_a_run_of_a_hundred() -> None:
    reader = Reader(PREPROCESS)
    reader.images(examples(80), "train")
    reader.images([*examples(19), Example("bad", lambda: b"", 0)], "validation")
    assert reader.finish() == ["1 of 100 images are unreadable and left out"]


@pytest.mark.parametrize(("limit", "total", "most"), [("1%", 99, 0), ("29%", 100, 29), ("2.5%", 80, 2), ("7", 9, 7)])
def test_the_limit_is_a_share_or_a_number(limit: str, total: int, most: int) -> None:
    assert ReadOptions(max_unreadable=limit).allowed(total) == most


@pytest.mark.parametrize("limit", ["one", "101%", "-1", "1.5", "", "%"])
def test_what_is_no_limit_is_one_line(limit: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--max-unreadable {limit}: give a percentage such as 1%, or a number"):
        ReadOptions(max_unreadable=limit)


def test_an_image_above_the_pixel_limit_is_one_of_the_unreadable(capsys: pytest.CaptureFixture[str]) -> None:
    reader = Reader(PREPROCESS, ReadOptions(max_unreadable="100%", max_pixels=255))
    assert len(reader.images(examples(2), "train")) == 0
    reader.finish()
    assert "grey/0: 16 x 16 pixels are more than 255: crop it, make it smaller, or raise --max-pixels" in (
        capsys.readouterr().err
    )


def test_an_image_that_would_be_huge_when_resized_is_not_resized() -> None:
    narrow = Example("line", lambda: encode(np.zeros((1, 5000, 3), dtype=np.uint8)), 0)
    reader = Reader(PREPROCESS, ReadOptions(max_pixels=1_000_000))
    assert len(reader.images([narrow], "train")) == 0
    assert reader.unreadable[0].reason.startswith("5000 x 1 pixels are too narrow: crop it")


def test_no_image_at_all_is_said() -> None:
    with pytest.raises(DataError, match="there are no test images"):
        decode_all([], PREPROCESS, "test")


def test_images_that_are_all_almost_black_are_told() -> None:
    reader = Reader(PREPROCESS)
    reader.images(examples(16), "train")
    (line,) = reader.remarks()
    assert line.startswith("warning: no pixel of 16 images is brighter than 15 of 255: they look almost black")
    reader.images(examples(200), "test")
    assert reader.remarks() == []
