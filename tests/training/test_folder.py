from pathlib import Path

import pytest

from mosa_deploy.errors import DataError
from tests.training.conftest import write_jpegs
from training.tasks.folder import Folder


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


def test_set_with_other_classes_is_named(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_jpegs(tmp_path / name, {"oak": 2, "elm" if name == "test" else "ash": 2})
    with pytest.raises(DataError, match=r"test has other classes than .*train: make them the same$"):
        Folder().splits(tmp_path, None)


@pytest.mark.parametrize(("given", "said"), [(None, "needs --data-dir"), (Path("nowhere"), "nowhere: no such folder")])
def test_folder_must_be_given_and_be_there(given: Path | None, said: str) -> None:
    with pytest.raises(DataError, match=rf"{said}[:;] give a folder of one folder a class$"):
        Folder().splits(given, None)


def test_files_that_are_no_images_and_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"oak": 5, "ash": 5})
    (tmp_path / "oak" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    splits = Folder().splits(tmp_path, None)
    assert splits.classes == ("ash", "oak")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10
