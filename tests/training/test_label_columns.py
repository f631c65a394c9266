"""Several labels per image, from a table."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import numbered, write_images
from tests.support.splits import labels, listed, refusal, sizes, write_table
from training.arguments import tune_config
from training.tasks.base import Example, Splits, draw_sets
from training.tasks.folder import Folder
from training.tasks.labels import numbers
from training.tasks.subset import Subset

GIVEN = {f"{i}.jpg": "|".join(name for name, every in (("cat", 2), ("dog", 3), ("elk", 5)) if i % every == 0)
         for i in range(30)}  # fmt: skip
"""Every second image has a cat, every third a dog and every fifth an elk; eight have none."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", *numbered("{}.jpg", 30))


def table(folder: Path, header: str, rows: Sequence[Sequence[str]]) -> Path:
    return write_table(folder / "labels.csv", header, rows)


def of_table(images: Path, path: Path) -> Splits:
    return listed(images, path, multi_label=True)


@pytest.mark.parametrize("separator", ["|", ";", "; "])
def test_labels_in_one_column(images: Path, tmp_path: Path, separator: str) -> None:
    rows = [(file, given.replace("|", separator)) for file, given in GIVEN.items()]
    found = of_table(images, table(tmp_path, "file,labels", rows))
    assert labels(found) == GIVEN
    assert found.classes == ("cat", "dog", "elk")
    assert "8 of 30 images have no label" in found.remarks


def test_labels_with_commas_between_them_in_quotes(images: Path, tmp_path: Path) -> None:
    rows = [(file, f'"{given.replace("|", ", ")}"') for file, given in GIVEN.items()]
    assert labels(of_table(images, table(tmp_path, "filename,tags", rows))) == GIVEN


def test_a_column_of_0_and_1_for_each_label(images: Path, tmp_path: Path) -> None:
    rows = [(file, *(str(int(name in given)) for name in ("elk", "cat", "dog"))) for file, given in GIVEN.items()]
    found = of_table(images, table(tmp_path, "file,elk,cat,dog", rows))
    assert labels(found) == GIVEN
    assert "and 2 more columns of 0 and 1, one for each label" in found.remarks[0]


def test_a_row_for_each_label(images: Path, tmp_path: Path) -> None:
    rows = [(file, name) for file, given in GIVEN.items() for name in given.split("|")]
    found = of_table(images, table(tmp_path, "file,label", rows))
    assert labels(found) == GIVEN
    assert not any("each image is used once" in remark for remark in found.remarks)


def test_lists_in_jsonl(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    lines = [{"file_name": file, "labels": given.split("|") if given else []} for file, given in GIVEN.items()]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert labels(of_table(images, path)) == GIVEN


def test_numbers_that_a_spreadsheet_saved_as_1_0(images: Path, tmp_path: Path) -> None:
    rows = [(file, "1.0|2.0" if i % 2 else "2.0") for i, file in enumerate(GIVEN)]
    assert of_table(images, table(tmp_path, "file,labels", rows)).classes == ("1", "2")


def test_sets_have_their_sizes_and_about_equal_shares_of_each_label(images: Path, tmp_path: Path) -> None:
    found = of_table(images, table(tmp_path, "file,labels", list(GIVEN.items())))
    assert sizes(found) == [18, 6, 6]
    for part, size in zip(found.sets().values(), (18, 6, 6), strict=True):
        counts = Counter(k for example in part for k in numbers(example.label))
        shares = [counts[k] / size for k in range(3)]
        assert shares == pytest.approx([1 / 2, 1 / 3, 1 / 5], abs=0.17)


def test_a_label_of_one_image_is_trained_on_however_small_train_is() -> None:
    examples = [Example(f"{i}", bytes, (0, 1) if i == 7 else (0,)) for i in range(20)]
    drawn = draw_sets(examples, {"train": 2, "validation": 18})
    assert "7" in [example.name for example in drawn["train"]]


def test_a_set_may_lack_a_rare_label_but_not_have_one_that_train_lacks(images: Path, tmp_path: Path) -> None:
    rows = [(file, given or "cat", "train" if i < 20 else "test") for i, (file, given) in enumerate(GIVEN.items())]
    found = of_table(images, table(tmp_path, "file,labels,split", [*rows[:29], ("29.jpg", "cat", "test")]))
    assert len(found.test) == 10
    path = table(tmp_path, "file,labels,split", [*rows[:29], ("29.jpg", "fox", "test")])
    said = "--labels labels.csv: test has the label 'fox', which no training image has: add images, or remove the label"
    assert refusal(images, path, multi_label=True) == said


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("file,labels", ["", "", ""], "no row has a label in 'labels'"),
        ("file,labels", ["[1, 0]", "[0, 1]", "[0, 0]"], "column 'labels' holds lists of 0 and 1, such as [1, 0]"),
        ("file,labels", ['["cat"', "cat", "dog"], "labels '[\"cat\"': "),
        ("file,width,height", ["1\t2", "2\t3", "3\t4"], "has no column of labels: its columns are 'file', 'width', "),
    ],
    ids=["none at all", "vectors", "no JSON", "no column"],
)
def test_tables_without_labels(images: Path, tmp_path: Path, header: str, cells: list[str], said: str) -> None:
    rows = [(f"{i}.jpg", *cells[i % 3].split("\t")) for i in range(30)]
    path = write_table(tmp_path / "labels.csv", header, rows, "\t")
    assert said in refusal(images, path, multi_label=True)


def test_captions_are_no_labels(images: Path, tmp_path: Path) -> None:
    rows = [(file, f"picture {file}") for file in GIVEN]
    said = refusal(images, table(tmp_path, "file,labels", rows), multi_label=True)
    assert "column 'labels' holds 30 labels in 30 rows, so they are no classes: name several labels" in said


def test_class_folders_are_no_several_labels(images: Path) -> None:
    with pytest.raises(DataError, match=r"^an image may have several labels, which no folder says: name them in a tab"):
        Folder(multi_label=True).splits(images, None)


def test_a_share_of_the_images_is_drawn_and_no_number_per_class(images: Path, tmp_path: Path) -> None:
    found = of_table(images, table(tmp_path, "file,labels", list(GIVEN.items())))
    assert len(Subset(fraction=0.5).of(found).train) == 9
    with pytest.raises(DataError, match=r"^--shots draws images of each class, and here one image may have several"):
        Subset(shots=2).of(found)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--balance loss", "--balance loss is for one class per image: with several labels give --loss asymmetric"),
        ("--select accuracy", "--select accuracy is for one class per image: with several labels choose map or loss"),
        ("--mixup 0.2 --cutmix 1", "--mixup 0.2, --cutmix 1: blends are of images with one class each, so drop it"),
        ("--method auto", "--method auto chooses by accuracy, which several labels per image have not: name a method"),
        ("--loss bec", "unknown loss 'bec'; did you mean bce?"),
    ],
)
def test_options_that_several_labels_do_not_take(flags: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tune_config(["--task", "folder", "--labels", "labels.csv", "--multi-label", *flags.split()])
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--task digits --multi-label", "--multi-label goes with --task folder: leave it out"),
        ("--task digits --loss bce", "--loss bce is for several labels per image: add --multi-label"),
        ("--task digits --select map", "--select map is for several labels per image: choose accuracy"),
    ],
)
def test_options_that_one_class_per_image_does_not_take(flags: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tune_config(flags.split())
    assert str(caught.value) == said


def test_a_built_in_task_of_several_labels_needs_no_flag() -> None:
    for flags in ([], ["--multi-label"]):
        assert tune_config(["--task", "sprites-labels", *flags]).task == "sprites-labels"
