"""Evaluating a finished run on other folders than the one that it was tuned on, and what that leaves to look at."""

import csv
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import DataError
from tests.support.images import write_jpegs
from training.config import TuneConfig
from training.evaluate import evaluate, print_evaluation
from training.options import EvaluateConfig
from training.tasks.folder import Folder
from training.tune import tune
from training.tune_options import ReadOptions

CLASSES = ("cat", "dog", "élan")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe that tells dark, grey and bright images apart."""
    root = tmp_path_factory.mktemp("runs")
    write_jpegs(root / "photos", dict.fromkeys(CLASSES, 20), size=32)
    return tune(
        TuneConfig(
            task="folder",
            name="pets",
            backbone=EMBEDDED,
            method="linear",
            data_dir=root / "photos",
            out=root / "pets",
            device="cpu",
        )
    )


@pytest.fixture
def test_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a test set alone, whose classes, dark to bright, have these names."""

    def made(*names: str) -> Path:
        aside = write_jpegs(tmp_path / "aside", dict.fromkeys(CLASSES, 6), size=32)
        (tmp_path / "made" / "test").mkdir(parents=True)
        for own, name in zip(CLASSES, names, strict=False):
            (aside / own).rename(tmp_path / "made" / "test" / name)
        return tmp_path / "made"

    return made


def test_classes_are_matched_by_name_and_not_by_their_order(
    run: Path, test_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = test_folder("cat", "Dog", "élan")  # The capital comes first.
    assert evaluate(EvaluateConfig(bundle=run, data_dir=folder, device="cpu"))["accuracy"] == 1.0
    assert "are in another order than the task's; they are matched by name" in capsys.readouterr().err


def test_other_names_of_the_same_number_are_an_error_that_names_them(
    run: Path, test_folder: Callable[..., Path]
) -> None:
    folder = test_folder("dog", "élan", "zebra")
    with pytest.raises(DataError) as caught:
        evaluate(EvaluateConfig(bundle=run, data_dir=folder, device="cpu"))
    assert str(caught.value) == (
        f"--data-dir {folder} lacks the task's class 'cat' and has a class that the task does not know: 'zebra'; give"
        " images of the same classes, in folders of their names"
    )


def test_a_missing_class_is_an_error_that_names_it(run: Path, test_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="lacks the task's class 'élan'"):
        evaluate(EvaluateConfig(bundle=run, data_dir=test_folder("cat", "dog"), device="cpu"))


def test_capitals_and_decomposed_accents_are_the_same_classes_and_said(
    run: Path, test_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = test_folder("Cat", "DOG", unicodedata.normalize("NFD", "élan"))
    assert evaluate(EvaluateConfig(bundle=run, data_dir=folder, device="cpu"))["accuracy"] == 1.0
    said = capsys.readouterr().err
    assert (
        f"warning: class names of --data-dir {folder} differ by case, spaces or Unicode form: 'Cat' for 'cat'" in said
    )


def test_every_answer_is_in_a_table_and_the_worst_mistakes_in_a_picture(
    run: Path, test_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = test_folder(*CLASSES)
    shutil.move(folder / "test" / "cat" / "cat_1.jpg", folder / "test" / "dog" / "cat_1.jpg")
    print_evaluation(EvaluateConfig(bundle=run, data_dir=folder, out=tmp_path / "looked", device="cpu"))
    with (tmp_path / "looked" / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 18
    assert [row for row in rows if row["label"] != row["answer"]] == [
        {"file": "dog/cat_1.jpg", "label": "dog", "answer": "cat", "score": rows[5]["score"]}
    ]
    assert all(0.3 < float(row["score"]) <= 1 for row in rows)
    with Image.open(tmp_path / "looked" / "mistakes.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    said = capsys.readouterr().out
    assert "accuracy 0.9444" in said
    assert (
        f"every answer is in {tmp_path}/looked/predictions.csv, the worst mistakes in {tmp_path}/looked/mistakes.png"
        in said
    )


def test_images_that_came_later_do_not_make_training_images_test_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "pets")
    shutil.copytree(run.parent / "photos", tmp_path / "photos")
    settings = (tmp_path / "pets" / "config.json").read_text()
    (tmp_path / "pets" / "config.json").write_text(settings.replace(str(run.parent), str(tmp_path)))
    for i in range(30):
        shutil.copy(run.parent / "photos" / "cat" / "cat_1.jpg", tmp_path / "photos" / "cat" / f"later_{i}.jpg")
    print_evaluation(EvaluateConfig(bundle=tmp_path / "pets", device="cpu"))
    with (run / "split.csv").open(newline="") as handle:
        kept = [row["file"] for row in csv.DictReader(handle) if row["set"] == "test"]
    with (tmp_path / "pets" / "evaluation" / "predictions.csv").open(newline="") as handle:
        assert [row["file"] for row in csv.DictReader(handle)] == kept
    said = capsys.readouterr().err
    assert f"warning: images were added, removed or renamed since {tmp_path}/pets was tuned" in said
    assert "of which 12 of 12 images are here" in said


@pytest.mark.parametrize(
    ("broken", "options"),
    [(2, {"reading": ReadOptions(max_unreadable="2")}), (1, {"skip_duplicates": True})],
    ids=["the run left them out", "one of all images"],
)
def test_unreadable_test_images_are_counted_over_the_whole_data_set(
    tmp_path: Path, broken: int, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_jpegs(tmp_path / "photos", dict.fromkeys(CLASSES, 40), size=16)
    for example in Folder().splits(photos, None).test[:broken]:
        (photos / example.name).write_bytes(b"")
    out = tmp_path / "pets"
    tune(TuneConfig("folder", backbone=EMBEDDED, method="linear", data_dir=photos, out=out, device="cpu", **options))
    evaluate(EvaluateConfig(bundle=out, device="cpu"))
    assert f"{broken} of 24 images are unreadable and left out" in capsys.readouterr().err


def test_answers_at_chance_level_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "noise" / "test" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / "test" / name / f"{i}.png")
    print_evaluation(EvaluateConfig(bundle=run, data_dir=tmp_path / "noise", out=tmp_path / "looked", device="cpu"))
    assert "warning: this learned nothing that 60 images can show" in capsys.readouterr().err
