from collections import Counter
from pathlib import Path

import pytest

from mosa_deploy.errors import DataError
from tests.support.images import write_jpegs
from training.tasks.base import Splits
from training.tasks.folder import Folder


def counts(splits: Splits) -> list[set[int]]:
    """For each set, the numbers of images that a class has."""
    sets = (splits.train, splits.validation, splits.test)
    return [set(Counter(example.label for example in part).values()) for part in sets]


def test_class_folders_are_split_60_20_20(tmp_path: Path) -> None:
    splits = Folder().splits(write_jpegs(tmp_path / "trees", {"oak": 10, "ash": 5}), None)
    assert splits.classes == ("ash", "oak")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [9, 3, 3]
    assert {example.name.split("/")[0] for example in splits.train if example.label == 1} == {"oak"}


def test_three_sets_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("validation", 1), ("test", 2)):
        write_jpegs(tmp_path / name, {"oak": count, "ash": 1})
    splits = Folder().splits(tmp_path, None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 2, 3]
    assert splits.test[-1].read() == (tmp_path / "test" / "oak" / "oak_2.jpg").read_bytes()
    assert splits.note == "as the folders say"


@pytest.mark.parametrize("name", ["val", "valid"])
def test_val_and_valid_are_validation(tmp_path: Path, name: str) -> None:
    for part, count in (("train", 3), (name, 1), ("test", 2)):
        write_jpegs(tmp_path / part, {"oak": count, "ash": count})
    assert counts(Folder().splits(tmp_path, None)) == [{3}, {1}, {2}]


def test_two_validations_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "valid", "test"):
        write_jpegs(tmp_path / part, {"oak": 1, "ash": 1})
    with pytest.raises(DataError, match=r"/val and .*/valid both are validation: join them, or keep one$"):
        Folder().splits(tmp_path, None)


def test_without_validation_a_stratified_fifth_of_train_becomes_it(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "train", {"oak": 20, "ash": 10})
    write_jpegs(tmp_path / "test", {"oak": 2, "ash": 2})
    splits = Folder().splits(tmp_path, None)
    drawn = [Counter(example.label for example in part) for part in (splits.train, splits.validation, splits.test)]
    assert drawn == [{1: 16, 0: 8}, {1: 4, 0: 2}, {1: 2, 0: 2}]
    assert len({example.name for part in (splits.train, splits.validation) for example in part}) == 30
    assert splits.note == "as the folders say; validation is a stratified fifth of train"


def test_fifth_of_train_that_leaves_a_class_out_is_refused(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "train", {"oak": 20, "ash": 1})
    write_jpegs(tmp_path / "test", {"oak": 2, "ash": 2})
    with pytest.raises(
        DataError, match=r"^class 'ash' has 1 images, which leaves none for validation \(4 of 21 images"
    ):
        Folder().splits(tmp_path, None)


def test_class_may_be_called_train(tmp_path: Path) -> None:
    assert Folder().splits(write_jpegs(tmp_path, {"bus": 5, "train": 5}), None).classes == ("bus", "train")


def test_sets_without_class_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train holds 5 images and no class folder: put each class into a folder"):
        Folder().splits(write_jpegs(tmp_path, {"train": 5, "test": 5}), None)


def test_set_with_other_classes_is_named(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_jpegs(tmp_path / name, {"oak": 2, "elm" if name == "test" else "ash": 2})
    said = r"test has other classes than .*train \('ash' is in one of them alone\): make them the same$"
    with pytest.raises(DataError, match=said):
        Folder().splits(tmp_path, None)


@pytest.mark.parametrize(("given", "said"), [(None, "needs --data-dir"), (Path("nowhere"), "nowhere: no such folder")])
def test_folder_must_be_given_and_be_there(given: Path | None, said: str) -> None:
    with pytest.raises(
        DataError, match=rf"{said}[:;] give a folder, or a tar or zip archive, with one folder per class$"
    ):
        Folder().splits(given, None)


def test_split_is_by_the_percentages_asked_for(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 20, "ash": 20})
    splits = Folder().splits(tmp_path, "70-20-10")
    assert counts(splits) == [{14}, {4}, {2}]
    assert splits.note == "70/20/10, stratified"


def test_split_of_sets_that_are_there_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_jpegs(tmp_path / part, {"oak": 5, "ash": 5})
    with pytest.raises(DataError, match=r"^--split 80-10-10: .* has sets of its own \(train, test\); leave it out$"):
        Folder().splits(tmp_path, "80-10-10")


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 3})
    with pytest.raises(DataError, match=r"oak holds 3 images and no class folder: put each class into a folder of its"):
        Folder().splits(tmp_path / "oak", None)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oak").mkdir()
    with pytest.raises(
        DataError, match=r"holds no images: give a folder, or a tar or zip archive, with one folder per class$"
    ):
        Folder().splits(tmp_path, None)


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("Cat", "cat", "'Cat' and 'cat'"),
        ("cat ", "cat", "'cat' and 'cat '"),
        ("1", "01", "'01' and '1'"),
        ("caf\u00e9", "cafe\u0301", r"'cafe\\u0301' and 'caf\\xe9'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_both_named(tmp_path: Path, one: str, other: str, shown: str) -> None:
    write_jpegs(tmp_path, {one: 5, other: 5, "dog": 5})
    with pytest.raises(
        DataError,
        match=rf"^classes {shown} in .* differ by case, spaces, leading zeros or Unicode form alone: rename or join",
    ):
        Folder().splits(tmp_path, None)


def test_image_deeper_than_its_class_is_named(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 5, "ash": 5})
    write_jpegs(tmp_path / "oak", {"young": 1})
    with pytest.raises(DataError, match=r"holds 'oak/young/young_1\.jpg', deeper than <class>/<file>: if it"):
        Folder().splits(tmp_path, None)


def test_link_to_a_folder_above_is_left_out(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 5, "ash": 5})
    (tmp_path / "oak" / "again").symlink_to(tmp_path)
    splits = Folder().splits(tmp_path, None)
    assert len(splits.train) == 6
    assert splits.remarks == ("left out as no images: 1 link(s) to a folder above",)


def test_linked_classes_are_read(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "elsewhere", {"oak": 5, "ash": 5})
    (tmp_path / "trees").mkdir()
    for name in ("oak", "ash"):
        (tmp_path / "trees" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(Folder().splits(tmp_path / "trees", None).train) == 6


def test_files_that_are_no_images_and_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 5, "ash": 5})
    (tmp_path / "oak" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    splits = Folder().splits(tmp_path, None)
    assert splits.classes == ("ash", "oak")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10
