"""Tuning on folders with unreadable, large, dark and repeated images, and on labels that say nothing."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import write_jpegs
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.tune import tune
from training.tune_options import ReadOptions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 dark and 20 bright images."""
    return write_jpegs(tmp_path / "photos", {"cat": 20, "dog": 20}, size=32)


def config(photos: Path, **options: object) -> TuneConfig:
    given = {
        "backbone": EMBEDDED,
        "method": "linear",
        "data_dir": photos,
        "out": photos.parent / "run",
        "device": "cpu",
        **options,
    }
    return TuneConfig(task="folder", **given)  # type: ignore[arg-type] # the options of one test each


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Images in sets: 10 to train, 4 for validation and 4 for the test of each class."""
    for name, count in (("train", 10), ("validation", 4), ("test", 4)):
        write_jpegs(tmp_path / "sets" / name, {"cat": count, "dog": count}, size=32)
        for path in (tmp_path / "sets" / name).rglob("*.jpg"):
            pixels = np.asarray(Image.open(path)).astype(int)
            noise = np.random.default_rng(len(name)).integers(0, 60, pixels.shape)
            Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path)
    return tmp_path / "sets"


def test_a_run_keeps_the_lists_of_its_sets(photos: Path) -> None:
    run = tune(config(photos))
    kept = rows(run / "split.csv")
    assert [sum(row["set"] == name for row in kept) for name in ("train", "validation", "test")] == [24, 8, 8]
    assert {row["file"] for row in kept} == {str(path.relative_to(photos)) for path in photos.rglob("*.jpg")}
    assert all(row["file"].startswith(row["label"]) for row in kept)


def test_unreadable_images_of_all_sets_are_listed_before_it_stops_and_the_folder_can_be_used_again(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [photos / "cat" / f"cat_{i}.jpg" for i in range(1, 9)]
    for path in bad:
        path.write_bytes(b"spoilt")
    with pytest.raises(DataError) as caught:
        tune(config(photos))
    assert str(caught.value).startswith("8 of 40 images are unreadable, listed in ")
    listed = rows(photos.parent / "run" / "unreadable.csv")
    assert {photos / row["file"] for row in listed} == set(bad)
    assert len({row["set"] for row in listed}) > 1
    assert capsys.readouterr().err.count("unreadable ") == 8
    for path in bad:
        path.unlink()
    tune(config(photos))
    assert not (photos.parent / "run" / "unreadable.csv").exists()


def test_an_unreadable_image_within_the_limit_is_left_out_and_in_the_report(photos: Path) -> None:
    (photos / "cat" / "cat_3.jpg").write_bytes(b"spoilt")
    run = tune(config(photos, reading=ReadOptions(max_unreadable="1")))
    assert "- 1 of 40 images are unreadable and left out, see unreadable.csv" in (run / "report.md").read_text()


def test_an_image_above_the_limit_of_pixels_is_one_of_the_unreadable(photos: Path) -> None:
    Image.new("RGB", (200, 200)).save(photos / "cat" / "cat_3.jpg")
    run = tune(config(photos, reading=ReadOptions(max_unreadable="1", max_pixels=10_000)))
    (row,) = rows(run / "unreadable.csv")
    assert row["file"] == "cat/cat_3.jpg"
    assert row["reason"].startswith("200 x 200 pixels are more than 10000")


def test_a_camera_of_12_bits_is_warned_of_and_its_scale_goes_into_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("cat", 500), ("dog", 3000)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            values = rng.integers(level, level + 1000, (32, 32)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "photos" / name / f"{i}.png")
    tune(config(tmp_path / "photos"))
    said = capsys.readouterr().err
    assert "warning: 16-bit grey in 20 images, with values up to 39" in said
    assert "tune with --white-level 4095, which the bundle keeps" in said
    run = tune(config(tmp_path / "photos", white_level=4095, out=tmp_path / "scaled"))
    assert "white" not in capsys.readouterr().err
    bundle = Bundle.load(run)
    assert bundle.record.preprocess.decode.white == 4095
    assert json.loads((run / "config.json").read_text())["white_level"] == 4095
    assert bundle.canary.pixels(bundle.record.preprocess).max() > 200


@pytest.mark.parametrize("level", [0, 65536])
def test_a_white_level_that_16_bits_do_not_have_is_one_line(photos: Path, level: int) -> None:
    with pytest.raises(ConfigError, match=rf"^--white-level {level}: 1 to 65535$"):
        tune(config(photos, white_level=level))


def test_labels_that_say_nothing_end_in_a_warning_that_says_what_to_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    run = tune(config(tmp_path / "photos"))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "learned nothing" in line)
    assert line.startswith("warning: this learned nothing that 16 images can show: accuracy ")
    assert "look at the labels" in line
    report = (run / "report.md").read_text()
    assert f"- **Warning:** {line.removeprefix('warning: ')}" in report


def test_images_that_sets_share_are_counted_listed_and_reported(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sets / "train" / "cat" / "cat_1.jpg", sets / "validation" / "dog" / "dog_2.jpg"
    shutil.copy(first, sets / "validation" / "cat" / "cat_1.jpg")
    shutil.copy(first, sets / "test" / "dog" / "dog_1.jpg")
    with Image.open(second) as image:
        image.save(sets / "test" / "dog" / "copy.png")
    run = tune(config(sets))
    said = capsys.readouterr().err
    assert "1 of 8 validation images repeat an image of train (1 the same file)" in said
    kinds = "(1 the same file, 1 the same pixels), 1 of them under another label"
    assert f"2 of 9 test images repeat an image of train or validation {kinds}" in said
    assert "keep the images of one object or series in one set (--group)" in said
    assert [(row["set"], row["label"], row["first_label"]) for row in rows(run / "duplicates.csv")] == [
        ("validation", "cat", "cat"),
        ("test", "dog", "dog"),
        ("test", "dog", "cat"),
    ]
    assert "- **Warning:** 1 of 8 validation images repeat" in (run / "report.md").read_text()


def test_one_image_in_the_folders_of_two_classes_is_told_also_within_a_set(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(sets / "train" / "cat" / "cat_1.jpg", sets / "train" / "dog" / "cat_1.jpg")
    shutil.copy(sets / "train" / "cat" / "cat_2.jpg", sets / "train" / "cat" / "again.jpg")
    run = tune(config(sets))
    line = "1 of 22 train images repeat an image of train (1 the same file), 1 of them under another label"
    assert f"warning: {line}; see duplicates.csv" in capsys.readouterr().err
    (row,) = rows(run / "duplicates.csv")
    assert (row["file"], row["first_file"]) == ("dog/cat_1.jpg", "cat/cat_1.jpg")


def test_sets_that_share_nothing_need_no_word(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tune(config(sets))
    assert "repeat" not in capsys.readouterr().err
    assert not (run / "duplicates.csv").exists()


def test_a_class_of_which_no_validation_image_can_be_read_is_told(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("validation", "test"):
        for path in (sets / name / "cat").iterdir():
            path.write_bytes(b"spoilt")
    reading = ReadOptions(max_unreadable="50%")
    run = tune(config(sets, reading=reading))
    line = "warning: no {} image of class cat: the figures say nothing about it"
    assert line.format("validation") in capsys.readouterr().err
    evaluate(EvaluateConfig(bundle=run, reading=reading, device="cpu"))
    assert line.format("test") in capsys.readouterr().err


def test_the_test_set_is_not_even_decoded_if_asked(sets: Path) -> None:
    for path in (sets / "test").rglob("*.jpg"):
        path.write_bytes(b"spoilt")
    assert not (tune(config(sets, skip_duplicates=True)) / "unreadable.csv").exists()


def test_a_run_is_not_resumed_on_other_images(photos: Path) -> None:
    run = tune(config(photos, method="mosa", epochs=1))
    (run / "adapter.json").unlink()
    (photos / "cat" / "cat_1.jpg").rename(photos / "cat" / "renamed.jpg")
    with pytest.raises(ConfigError, match=r"was begun on other images than these \(\d+ lines differ, such as \w+,cat/"):
        tune(config(photos, method="mosa", epochs=1, resume=True))


def test_photos_of_a_phone_do_not_make_a_bundle_that_is_too_large_to_be_uploaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (900, 1200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg", quality=95)
    run = tune(config(tmp_path / "photos", skip_duplicates=True))
    assert (run / "adapter.safetensors").stat().st_size < 100_000
