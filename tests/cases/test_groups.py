"""Photos of one patient, frames of one video: what belongs together is in one set alone."""

from collections import defaultdict
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from tests.support.images import numbered, write_images
from tests.support.splits import refusal, sizes
from training.arguments import tune_config
from training.tasks import find
from training.tasks.base import Example, Splits
from training.tasks.folder import Folder


def sets_of_groups(splits: Splits) -> dict[str | None, set[str]]:
    """Group -> the sets that hold an image of it."""
    found = defaultdict[str | None, set[str]](set)
    for name in ("train", "validation", "test"):
        for example in getattr(splits, name):
            found[example.group].add(name)
    return found


def shares_of_class(splits: Splits, label: int) -> list[float]:
    def count(examples: list[Example]) -> int:
        return sum(example.label == label for example in examples)

    parts = [count(list(part)) for part in (splits.train, splits.validation, splits.test)]
    return [part / sum(parts) for part in parts]


def patients(folder: Path, count: int = 10, images: int = 6) -> Path:
    """`<class>/<patient>/<file>`: each patient has images in both classes."""
    names = [f"{kind}/p{i}/{j}.jpg" for kind in ("benign", "malignant") for i in range(count) for j in range(images)]
    return write_images(folder, *names)


def test_folders_below_a_class_stay_in_one_set_across_classes(tmp_path: Path) -> None:
    splits = Folder(group="folder").splits(patients(tmp_path), None)
    assert splits.classes == ("benign", "malignant")
    assert all(len(found) == 1 for found in sets_of_groups(splits).values())
    assert sizes(splits) == [72, 24, 24]
    assert splits.note == "60/20/20, stratified, 10 groups kept whole (the largest, 'p0', has 12 images)"


def test_prefixes_stay_in_one_set(tmp_path: Path) -> None:
    names = [f"{kind}/video{i}_frame{j:03}.jpg" for kind in ("cat", "dog") for i in range(10) for j in range(5)]
    splits = Folder(group="prefix").splits(write_images(tmp_path, *names), None)
    groups = sets_of_groups(splits)
    assert groups.keys() == {f"video{i}" for i in range(10)}
    assert all(len(found) == 1 for found in groups.values())


def test_classes_keep_their_shares_though_groups_differ_in_size(tmp_path: Path) -> None:
    names = [f"cat/a{i}_{j}.jpg" for i in range(30) for j in range(1 + i % 7)]
    names += [f"dog/b{i}_{j}.jpg" for i in range(40) for j in range(1 + i % 3)]
    splits = Folder(group="prefix").splits(write_images(tmp_path, *names), None)
    for label in (0, 1):
        assert shares_of_class(splits, label) == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_few_groups_still_give_every_set_every_class(tmp_path: Path) -> None:
    names = [f"{kind}/{kind}{i}_{j}.jpg" for kind in ("cat", "dog") for i in range(3) for j in range(2)]
    splits = Folder(group="prefix").splits(write_images(tmp_path, *names), None)
    assert splits.note.startswith("60/20/20")
    for part in (splits.train, splits.validation, splits.test):
        assert {example.label for example in part} == {0, 1}


def test_every_call_draws_alike(tmp_path: Path) -> None:
    patients(tmp_path)
    first, second = (Folder(group="folder").splits(tmp_path, None) for _ in range(2))
    assert [e.name for e in first.train] == [e.name for e in second.train]


def test_validation_is_drawn_from_train_by_groups(tmp_path: Path) -> None:
    patients(tmp_path / "train")
    patients(tmp_path / "test", count=0)
    write_images(tmp_path / "test", "benign/q/0.jpg", "malignant/q/0.jpg")
    splits = Folder(group="folder").splits(tmp_path, None)
    assert all(len(found) == 1 for found in sets_of_groups(splits).values())
    assert sizes(splits) == [96, 24, 2]


def test_a_group_in_two_sets_of_the_users_own_is_named(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        patients(tmp_path / part, count=1)
    assert refusal(tmp_path, group="folder") == (
        "group 'p0' is in train and in validation: move its images into one set, or group otherwise"
    )


def test_one_group_alone_cannot_be_split(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("cat/IMG_{}.jpg", 9), *numbered("dog/IMG_{}.jpg", 9))
    assert refusal(tmp_path, group="prefix") == (
        "1 groups cannot fill 3 sets (one is 'IMG'): group the images by another rule, or by a column of --labels"
    )


def test_a_class_of_too_few_groups_is_named(tmp_path: Path) -> None:
    names = [f"cat/p{i}/{j}.jpg" for i in range(9) for j in range(3)] + numbered("dog/q/{}.jpg", 9)
    said = refusal(write_images(tmp_path, *names), group="folder")
    assert said.startswith("class 'dog' has 9 images, in groups that stay together, which leaves none for ")


def test_groups_by_folder_where_there_are_none(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("cat/{}.jpg", 5), *numbered("dog/{}.jpg", 5))
    assert refusal(tmp_path, group="folder") == (
        "--group folder: no image lies in a folder below its class; leave it out"
    )


def test_a_column_needs_a_table(tmp_path: Path) -> None:
    patients(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Folder(group="patient").splits(tmp_path, None)
    said = "--group patient: choose folder or prefix, or give --labels FILE with a column of that name"
    assert str(caught.value) == said


def test_other_tasks_take_no_groups() -> None:
    with pytest.raises(ConfigError, match=r"^--group goes with --task folder: leave it out$"):
        tune_config(["--task", "digits", "--group", "folder"])


def test_the_options_of_the_command_line_reach_the_task(tmp_path: Path) -> None:
    config = tune_config(["--task", "folder", "--data-dir", str(tmp_path), "--group", "folder"])
    assert find(config.task, config.labels, config.group) == Folder(group="folder")


def test_a_rule_that_keeps_no_two_images_together_is_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path, *numbered("cat/{}.jpg", 10), *numbered("dog/1{}.jpg", 10))
    for path in (images / "cat").iterdir():
        path.rename(path.with_name(f"2{path.name}"))
    assert refusal(images, group="prefix") == (
        "--group prefix: every image would be a group of its own, which keeps none together: leave it out"
    )
