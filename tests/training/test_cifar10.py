import tarfile
from collections import Counter
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import DATA, write_jpegs
from training.tasks.cifar10 import DRAWS, Cifar10


def made(folder: Path, train: int, test: int = 3) -> Path:
    write_jpegs(folder / "train", {"cat": train, "ship": 45})
    write_jpegs(folder / "test", {"cat": test, "ship": test})
    return folder


def test_20_and_20_of_a_class_are_drawn_from_train_and_test_is_whole(tmp_path: Path) -> None:
    folder = made(tmp_path / "cifar10", 50)
    with tarfile.open(tmp_path / "cifar10.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar10")
    for given in (folder, tmp_path / "cifar10.tar.gz"):
        splits = Cifar10().splits(given, None)
        assert splits.classes == ("cat", "ship")
        for part in (splits.train, splits.validation):
            assert Counter(example.label for example in part) == {0: 20, 1: 20}
            for example in part:
                assert example.read() == (folder / "train" / example.name).read_bytes()
        assert len({example.name for part in (splits.train, splits.validation) for example in part}) == 80
        assert [example.name for example in splits.test] == [
            f"{n}/{n}_{i}.jpg" for n in ("cat", "ship") for i in (1, 2, 3)
        ]
        assert "this does not test transfer" in splits.note


def test_draw_is_the_same_every_time_and_not_the_first_images(tmp_path: Path) -> None:
    folder = made(tmp_path, 50)
    first, second = (Cifar10().splits(folder, None) for _ in range(2))
    assert [e.name for e in first.train] == [e.name for e in second.train]
    cats = sorted(path.name for path in (folder / "train" / "cat").iterdir())
    assert {e.name for e in first.train if e.label == 0} != {f"cat/{name}" for name in cats[:20]}


def test_the_second_draw_has_other_images(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "train", {"cat": 80, "ship": 90})
    write_jpegs(tmp_path / "test", {"cat": 1, "ship": 1})
    first, second = (Cifar10().splits(tmp_path, split) for split in DRAWS)
    drawn = [{each.name for each in (*splits.train, *splits.validation)} for splits in (first, second)]
    assert [len(names) for names in drawn] == [80, 80]
    assert not drawn[0] & drawn[1]
    with pytest.raises(ConfigError, match=r"--split third: cifar10 takes first or second"):
        Cifar10().splits(tmp_path, "third")


def test_class_of_fewer_than_40_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"class 'cat' has 39 training images, of which 40 are to be drawn: give all of"
    ):
        Cifar10().splits(made(tmp_path, 39), None)


@pytest.mark.parametrize("given", [None, Path("nowhere.tar.gz")])
def test_archive_must_be_given_and_be_there(given: Path | None) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        Cifar10().splits(given, None)


@pytest.mark.data
def test_real_archive_gives_200_200_and_10000() -> None:
    splits = Cifar10().splits(DATA / "cifar10.tar.gz", None)
    assert len(splits.classes) == 10
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [200, 200, 10_000]
    assert set(Counter(example.label for example in splits.test).values()) == {1000}
