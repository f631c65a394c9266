import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError, DataError
from tests.support import miniatures
from tests.support.miniatures import VTAB_LABELS, vtab_lists
from training.arguments import tune_config
from training.tasks import BENCHMARKS, TASKS, by_name, find, run_name
from training.tasks.base import Example, Splits
from training.tasks.benchmark import Benchmark
from training.tasks.digits import Digits
from training.tasks.labels import Label
from training.tasks.vtab import VTAB

NAMES = {"train": "train800", "validation": "val200", "test": "test"}


def labels_of(examples: Sequence[Example]) -> dict[str, Label]:
    return {example.name: example.label for example in examples}


def read(task: str, folder: Path, split: str | None = None) -> Splits:
    return find(task).splits(folder, split)


def test_there_are_27_tasks_in_the_order_of_the_tables() -> None:
    names = [task.name for task in BENCHMARKS]
    assert len(set(names)) == 27
    assert [name.partition("/")[0] for name in names] == ["fgvc"] * 5 + ["vtab"] * 19 + ["gicd"] * 3
    assert names[0] == "fgvc/cub"
    assert names[5] == "vtab/cifar"
    assert names[23] == "vtab/smallnorb_ele"


def test_sizes_are_those_of_the_data_sets() -> None:
    official = {"fgvc/cub": 5994, "fgvc/nabirds": 23_929, "fgvc/flowers": 2040, "fgvc/dogs": 12_000, "fgvc/cars": 8144}
    official |= {"gicd/cifar100": 50_000, "gicd/food101": 75_750, "gicd/aircraft": 6667}
    for task in BENCHMARKS:
        assert sum(task.counts[:2]) == official.get(task.name, 1000), task.name
    assert all(task.squash == (task.group == "vtab") for task in BENCHMARKS)


@pytest.mark.parametrize("task", VTAB, ids=lambda task: task.name.partition("/")[2])
def test_vtab_lists_give_their_images_sets_and_labels(task: Benchmark, tmp_path: Path) -> None:
    classes = min(3, task.classes)
    labels = {key: [label % classes for label in given] for key, given in VTAB_LABELS.items()}
    splits = read(task.name, vtab_lists(tmp_path, labels))
    for part, examples in splits.sets().items():
        listing = NAMES[part]
        wanted = {f"images/{listing}/{i:06d}.jpg": label for i, label in enumerate(labels[listing])}
        assert labels_of(examples) == wanted
        assert all(each.read() == (tmp_path / each.name).read_bytes() for each in examples)
    assert len(splits.classes) == task.classes
    assert splits.fixed_classes


def test_all_1000_images_are_tuned_on_if_asked_for(tmp_path: Path) -> None:
    splits = read("vtab/eurosat", vtab_lists(tmp_path), "1000")
    assert [example.label for example in splits.train] == [*VTAB_LABELS["train800"], *VTAB_LABELS["val200"]]
    assert [len(splits.validation), len(splits.test)] == [3, 4]
    assert "validation repeats" in splits.note


@pytest.mark.parametrize("inside", ["", "eurosat", "vtab-1k/eurosat"])
def test_the_folder_of_the_task_or_one_above_it_is_taken(tmp_path: Path, inside: str) -> None:
    vtab_lists(tmp_path / inside)
    assert len(read("vtab/eurosat", tmp_path).train) == 10


def test_without_data_dir_the_cache_folder_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path))
    vtab_lists(tmp_path / "data" / "vtab-1k" / "eurosat")
    assert len(find("vtab/eurosat").splits(None, None).train) == 10


def test_lists_of_windows_with_blank_lines_and_spaces_in_names_are_read(tmp_path: Path) -> None:
    vtab_lists(tmp_path)
    (tmp_path / "images" / "val200" / "000000.jpg").rename(tmp_path / "images" / "a b.jpg")
    text = "\ufeffimages/a b.jpg 0\r\n\r\nimages/val200/000001.jpg 1\r\nimages/val200/000002.jpg 2\r\n"
    (tmp_path / "val200.txt").write_bytes(text.encode())
    assert labels_of(read("vtab/eurosat", tmp_path).validation)["images/a b.jpg"] == 0


def test_a_list_that_names_missing_files_counts_all_and_names_ten(tmp_path: Path) -> None:
    vtab_lists(tmp_path, {**VTAB_LABELS, "test": [0] * 30})
    for i in range(12):
        (tmp_path / "images" / "test" / f"{i:06d}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read("vtab/eurosat", tmp_path)
    text = str(caught.value)
    assert "12 of 43 images are not there: images/test/000000.jpg, " in text
    assert text.count("images/test/") == 10
    assert "and 2 more" in text


def test_all_faults_of_the_lists_are_told_at_once(tmp_path: Path) -> None:
    vtab_lists(tmp_path)
    (tmp_path / "val200.txt").write_text(
        "images/val200/000000.jpg 10\nimages/val200/000001.jpg\n"
        "images/val200/000002.jpg 1\nimages/val200/000002.jpg 2\n"
    )
    (tmp_path / "images" / "test" / "000003.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read("vtab/eurosat", tmp_path)
    for told in (
        "val200.txt:1 has label 10, and EuroSAT has labels 0 to 9",
        "val200.txt:2 is 'images/val200/000001.jpg', not an image and a label",
        "val200.txt:4 has label 2 for images/val200/000002.jpg, and an earlier line has 1",
        "1 of 15 images are not there: images/test/000003.jpg",
    ):
        assert told in str(caught.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    vtab_lists(tmp_path)
    (tmp_path / "val200.txt").unlink()
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=r"lacks val200.txt, test.txt: unpack EuroSAT again"):
        read("vtab/eurosat", tmp_path)


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    vtab_lists(tmp_path)
    (tmp_path / "train800.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train800.txt names no image"):
        read("vtab/eurosat", tmp_path)


def test_other_splits_are_refused(tmp_path: Path) -> None:
    vtab_lists(tmp_path / "a")
    miniatures.cub(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"--split 60-20-20: vtab/eurosat takes 800-200 or 1000"):
        read("vtab/eurosat", tmp_path / "a", "60-20-20")
    with pytest.raises(ConfigError, match=r"--split 1000: fgvc/cub has sets of its own, leave it out"):
        read("fgvc/cub", tmp_path / "b", "1000")


@pytest.mark.parametrize(
    ("task", "make", "sizes", "classes", "some"),
    [
        (
            "fgvc/cub",
            miniatures.cub,
            [4, 3, 3],
            ("001.Black_footed_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"),
            {"004.Groove_billed_Ani/Groove_Billed_Ani_0005_1750.jpg": 2},
        ),
        ("fgvc/nabirds", miniatures.nabirds, [4, 3, 3], ("0295", "0817", "1010"), {"1010/8bb1.jpg": 2}),
        ("fgvc/flowers", miniatures.flowers, [3, 3, 4], ("1", "2", "10"), {"jpg/image_07090.jpg": 2}),
        (
            "fgvc/dogs",
            miniatures.dogs,
            [6, 3, 1],
            ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02116738-African_hunting_dog"),
            {"n02085620-Chihuahua/n02085620_2650.jpg": 0},
        ),
        (
            "fgvc/cars",
            miniatures.cars,
            [3, 3, 4],
            ("3", "14", "91"),
            {"cars_test/00001.jpg": 2, "cars_test/00003.jpg": 0},
        ),
    ],
)
def test_vpt_splits_give_their_images_sets_and_labels(
    task: str,
    make: Callable[[Path], Path],
    sizes: list[int],
    classes: tuple[str, ...],
    some: dict[str, int],
    tmp_path: Path,
) -> None:
    splits = read(task, make(tmp_path))
    assert [len(part) for part in splits.sets().values()] == sizes
    assert splits.classes == classes
    assert some.items() <= labels_of(splits.test).items()
    assert all(each.read()[:2] == b"\xff\xd8" for part in splits.sets().values() for each in part)
    assert any("the figures do not stand beside published ones" in remark for remark in splits.remarks)


def test_splits_of_another_data_set_are_named(tmp_path: Path) -> None:
    miniatures.cub(tmp_path / "cub")
    miniatures.nabirds(tmp_path / "birds")
    for name in ("train", "val", "test"):
        shutil.copy(tmp_path / "birds" / f"{name}.json", tmp_path / "cub")
    with pytest.raises(DataError, match=r"10 of 10 images of the JSON files are not in .*images.* another data set's"):
        read("fgvc/cub", tmp_path / "cub")


def test_more_classes_than_the_data_set_has_are_refused(tmp_path: Path) -> None:
    miniatures.flowers(tmp_path)
    many = {f"jpg/{i}.jpg": i for i in range(103)}
    (tmp_path / "train.json").write_text(json.dumps(many))
    with pytest.raises(DataError, match=r"train.json names 103 classes, and Oxford Flowers has 102: this is another"):
        read("fgvc/flowers", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("val.json", "{", r"val.json is no JSON"),
        ("val.json", "[1, 2]", r"val.json is no split of VPT's"),
        ("val.json", '{"a.jpg": 1.5}', r"val.json is no split of VPT's"),
        ("test.json", "{}", r"test.json names no image"),
        (
            "test.json",
            '{"003.Sooty_Albatross/Sooty_Albatross_0003_1078.jpg": 7}',
            r"has 1 classes that train.json has not \(7\)",
        ),
        ("val.json", '{"003.Sooty_Albatross/Sooty_Albatross_0001_1071.jpg": 3}', r"train.json have 1 images in common"),
    ],
)
def test_files_that_are_no_splits_are_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (miniatures.cub(tmp_path) / name).write_text(content)
    with pytest.raises(DataError, match=told):
        read("fgvc/cub", tmp_path)


def test_a_missing_json_file_and_missing_images_are_named(tmp_path: Path) -> None:
    miniatures.cub(tmp_path)
    gone = tmp_path / "images" / "003.Sooty_Albatross" / "Sooty_Albatross_0003_1078.jpg"
    gone.unlink()
    with pytest.raises(
        DataError, match=r"1 of 10 images of the JSON files are not in .*: 003.Sooty.*unpack CUB-200-2011"
    ):
        read("fgvc/cub", tmp_path)
    (tmp_path / "val.json").unlink()
    with pytest.raises(
        DataError, match=r"lacks val.json: fgvc/cub reads images/ beside VPT's train.json, val.json, test"
    ):
        read("fgvc/cub", tmp_path)


@pytest.mark.parametrize("task", [task.name for task in BENCHMARKS])
def test_a_missing_data_set_is_one_line_that_says_how_to_get_it_at_once(task: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        read(task, tmp_path)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert "To get it: " in str(caught.value)


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "vtab-1k.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is a file: unpack it, and give the folder of EuroSAT"):
        read("vtab/eurosat", tmp_path / "vtab-1k.zip")


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two tasks have the name 'digits'"):
        by_name([Digits(), Digits()])
    first = BENCHMARKS[0]
    with pytest.raises(ConfigError, match=r"runs of the tasks 'fgvc/cub' and 'fgvc-cub' have the same name"):
        by_name([first, replace(first, name="fgvc-cub")])


def test_runs_have_names_without_a_slash() -> None:
    assert run_name("vtab/eurosat") == "vtab-eurosat"
    assert run_name("digits") == "digits"
    assert {"digits", "vtab/eurosat"} <= TASKS.keys()


def test_the_command_line_misses_images_before_anything_heavy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no EuroSAT in .*vtab-1k/eurosat \(no --data-dir was given\)"):
        tune_config(["--task", "vtab/eurosat"])
    vtab_lists(tmp_path / "data" / "vtab-1k" / "eurosat")
    assert tune_config(["--task", "vtab/eurosat"]).task == "vtab/eurosat"
