"""Train, validation and test as people name them, and folders in which some of them are missing."""

from pathlib import Path

import pytest

from tests.support.images import numbered, write_images
from tests.support.splits import refusal, sizes, two_classes
from training.tasks.folder import Folder


def sets(folder: Path, *names: str) -> Path:
    """A folder with these sets, of 5 images per class."""
    for name in names:
        two_classes(folder / name)
    return folder


SPELLINGS = [
    ("Train", "Val", "Test"),
    ("TRAIN", "VALID", "TEST"),
    ("Training", "Validation", "Testing"),
    ("train_set", "dev_set", "test_set"),
    ("trainset", "valset", "testset"),
    ("train-images", "eval-images", "test-images"),
    ("TrainData", "ValData", "TestData"),
    ("01_train", "02_dev", "03_test"),
    ("train2017", "val2017", "test2017"),
    ("seg_train", "seg_val", "seg_test"),
    ("training data", "evaluation data", "holdout"),
    ("trainval", "dev2", "tests"),
    ("trainval", "dev2", "tests"),
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling[0])
def test_sets_are_known_by_any_spelling(tmp_path: Path, spelling: tuple[str, str, str]) -> None:
    for name, count in zip(spelling, (6, 3, 2), strict=True):
        write_images(tmp_path / name, *numbered("oak/{}.jpg", count), *numbered("ash/{}.jpg", count))
    splits = Folder().splits(tmp_path, None)
    assert (splits.classes, sizes(splits)) == (("ash", "oak"), [12, 6, 4])


def test_a_set_may_lie_in_a_folder_of_its_own_name(tmp_path: Path) -> None:
    sets(tmp_path, "seg_train/seg_train", "seg_test/seg_test", "test")
    write_images(tmp_path, *numbered("seg_pred/seg_pred/{}.jpg", 3))
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    splits = Folder().splits(tmp_path, None)
    assert (splits.classes, sizes(splits)) == (("ash", "oak"), [8, 2, 10])
    assert splits.remarks[0].startswith(f"left out: 13 image(s) of {tmp_path} in none of its sets, such as 'elsewhere/")


def test_images_folder_inside_each_set(tmp_path: Path) -> None:
    assert sizes(Folder().splits(sets(tmp_path, "train/images", "val/images"), None)) == [10, 10, 0]


def test_train_and_validation_without_test(tmp_path: Path) -> None:
    splits = Folder().splits(sets(tmp_path, "train", "val"), None)
    assert (sizes(splits), splits.note) == ([10, 10, 0], "as the folders say; there is no test set")


def test_train_alone(tmp_path: Path) -> None:
    splits = Folder().splits(sets(tmp_path, "train"), None)
    assert sizes(splits) == [8, 2, 0]
    assert splits.note == "as the folders say; validation is a stratified fifth of train; there is no test set"
    assert sizes(Folder().splits(tmp_path, "60-20-20")) == [6, 2, 2]


def test_test_alone_is_there_to_be_evaluated(tmp_path: Path) -> None:
    splits = Folder().splits(sets(tmp_path, "Testing"), None)
    assert (sizes(splits), splits.note) == ([0, 0, 10], "as the folders say: a test set alone")


def test_validation_and_test_without_train(tmp_path: Path) -> None:
    sets(tmp_path, "val", "test")
    assert refusal(tmp_path) == (
        f"{tmp_path} has validation and test and no train: add train/<class>/<file> to tune on, or name a single set"
        " `test` to evaluate a tuned task on it"
    )


def test_unlabelled_test_images_of_a_competition(tmp_path: Path) -> None:
    write_images(sets(tmp_path, "train"), *numbered("test/{}.jpg", 7))
    splits = Folder().splits(tmp_path, None)
    assert sizes(splits) == [8, 2, 0]
    assert splits.remarks == (f"left out: 7 image(s) of {tmp_path}/test, which has no class folders",)
    assert splits.note.endswith("; there is no test set")


@pytest.mark.parametrize("pair", [("val", "valid"), ("Train", "train"), ("dev", "eval"), ("test", "testing")])
def test_two_folders_of_one_set_are_both_named(tmp_path: Path, pair: tuple[str, str]) -> None:
    sets(tmp_path, "train", *pair)
    said = refusal(tmp_path)
    assert all(f"{tmp_path}/{name}" in said for name in pair)
    assert said.endswith(": join them, or keep one")


def test_sets_by_unknown_names_are_never_joined(tmp_path: Path) -> None:
    sets(tmp_path, "part1", "part2")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds 'part1/ash/0.jpg', deeper than <class>/<file>: if 'part1' and 'part2' are sets, name them"
        " train, validation and test; if they are classes, keep their inner folders together with --group folder"
    )


def test_one_set_beside_folders_like_it_is_no_set_of_its_own(tmp_path: Path) -> None:
    assert refusal(sets(tmp_path, "train", "more")) == (
        f"{tmp_path} holds 'train', which looks like a set, beside 'more': name the sets train, validation and test, or"
        " rename the class"
    )


def test_a_class_named_test(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("test/{}.jpg", 5), *numbered("control/{}.jpg", 5))
    assert Folder().splits(tmp_path, None).classes == ("control", "test")


def test_classes_that_speak_of_trains_and_tests(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("steam train/a/{}.jpg", 5), *numbered("crash test/b/{}.jpg", 5))
    assert "holds 'crash test/b/0.jpg', deeper than <class>/<file>: if it belongs to the class" in refusal(tmp_path)


def test_a_set_that_lacks_a_class_is_named(tmp_path: Path) -> None:
    write_images(sets(tmp_path, "Train", "Test"), "Train/elm/0.jpg")
    said = (
        f"{tmp_path}/Test has other classes than {tmp_path}/Train ('elm' is in one of them alone): make them the same"
    )
    assert refusal(tmp_path) == said


def test_sets_of_two_kinds_are_not_guessed_between(tmp_path: Path) -> None:
    names = [f"{part}_{kind}/{label}/0.jpg" for part in ("train", "test") for kind in "ab" for label in ("ash", "oak")]
    assert refusal(write_images(tmp_path, *names)) == (
        f"{tmp_path} holds sets of several kinds, such as 'test_a' and 'test_b': keep one kind"
    )


@pytest.mark.parametrize("group", [None, "folder"])
def test_sets_inside_classes_are_never_mixed(tmp_path: Path, group: str | None) -> None:
    names = [f"{label}/{part}/{i}.jpg" for part in ("train", "val", "test") for label in ("ash", "oak") for i in "012"]
    assert refusal(write_images(tmp_path, *names), group=group) == (
        f"{tmp_path} holds 'ash/test/0.jpg', a set inside a class: put the classes into the sets, as in 'test/ash'"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("images/0.png", "images/1.png", "masks/0.png", "masks/1.png"),
        ("images/train/0.jpg", "labels/train/0.txt"),
        ("train/images/0.jpg", "train/labels/0.txt", "val/images/0.jpg", "val/labels/0.txt"),
        ("JPEGImages/0.jpg", "SegmentationClass/0.png", "Annotations/0.xml"),
    ],
    ids=["segmentation", "detection", "detection, by sets", "Pascal VOC"],
)
def test_images_beside_what_was_drawn_over_them_are_no_two_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    said = refusal(write_images(tmp_path, *names))
    assert "as data sets for detection or segmentation do: put the images into one folder per class" in said


def test_classes_of_masks_and_without_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("mask/{}.jpg", 5), *numbered("no mask/{}.jpg", 5))
    assert Folder().splits(tmp_path, None).classes == ("mask", "no mask")
