import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.decode import Decode
from mosa_deploy.errors import ConfigError, DataError
from tests.support import torchvision_miniatures as miniatures
from training.tasks import find
from training.tasks.base import Splits

Make = Callable[[Path], Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a miniature by the name of its function."""

    def make(name: str) -> Path:
        function = getattr(miniatures, name)
        patched = name in ("cifar100", "svhn", "flowers102")
        found: Path = function(tmp_path, monkeypatch) if patched else function(tmp_path)
        return found

    return make


def sizes(splits: Splits) -> list[int]:
    names = [example.name for part in splits.sets().values() for example in part]
    assert len(set(names)) == len(names)
    return [len(part) for part in splits.sets().values()]


def counts(splits: Splits) -> list[Counter[object]]:
    return [Counter(example.label for example in part) for part in splits.sets().values()]


@pytest.mark.parametrize(
    ("name", "miniature", "expected", "train", "test"),
    [
        ("fgvc/flowers", "flowers102", [3, 3, 4], {0: 1, 76: 1, 101: 1}, {0: 1, 76: 2, 101: 1}),
        ("fgvc/cars", "stanford_cars", [27, 3, 2], {0: 9, 1: 9, 2: 9}, {0: 1, 2: 1}),
        ("gicd/food101", "food101", [27, 3, 6], {0: 9, 1: 9, 2: 9}, {0: 2, 1: 2, 2: 2}),
        ("gicd/aircraft", "aircraft", [4, 3, 3], {0: 1, 1: 1, 2: 2}, {0: 1, 1: 1, 2: 1}),
        ("gicd/cifar100", "cifar100", [27, 3, 3], {0: 9, 19: 9, 29: 9}, {33: 1, 49: 1, 72: 1}),
    ],
)
def test_sets_of_the_data_set_itself(
    name: str,
    miniature: str,
    expected: list[int],
    train: dict[int, int],
    test: dict[int, int],
    made: Callable[[str], Path],
) -> None:
    splits = find(name).splits(made(miniature), None)
    assert sizes(splits) == expected
    found = counts(splits)
    assert found[0] == train
    assert found[2] == test


@pytest.mark.parametrize(
    ("name", "miniature", "expected", "tuned", "test"),
    [
        ("vtab/cifar", "cifar100", [24, 6, 3], {0: 10, 19: 10, 29: 10}, {33: 1, 49: 1, 72: 1}),
        ("vtab/dtd", "dtd", [5, 1, 3], {0: 2, 1: 2, 2: 2}, {0: 1, 1: 1, 2: 1}),
        ("vtab/oxford_flowers102", "flowers102", [5, 1, 4], {0: 2, 76: 2, 101: 2}, {0: 1, 76: 2, 101: 1}),
        ("vtab/oxford_iiit_pet", "pets", [6, 1, 3], {0: 2, 1: 2, 2: 3}, {0: 1, 1: 1, 2: 1}),
        ("vtab/svhn", "svhn", [8, 2, 2], {0: 3, 1: 4, 9: 3}, {0: 1, 5: 1}),
        ("vtab/patch_camelyon", "pcam", [8, 2, 3], {0: 5, 1: 5}, {0: 1, 1: 2}),
        ("vtab/clevr_count", "clevr", [8, 2, 2], {0: 4, 2: 3, 7: 3}, {0: 1, 1: 1}),
        ("vtab/clevr_dist", "clevr", [8, 2, 2], {0: 3, 4: 3, 5: 4}, {5: 2}),
    ],
)
def test_vtab_sizes_are_drawn_from_what_is_not_for_tests(
    name: str,
    miniature: str,
    expected: list[int],
    tuned: dict[int, int],
    test: dict[int, int],
    made: Callable[[str], Path],
) -> None:
    folder = made(miniature)
    splits = find(name).splits(folder, None)
    assert sizes(splits) == expected
    found = counts(splits)
    assert found[0] + found[1] == tuned
    assert found[2] == test
    assert "which are not VTAB's" in splits.note
    again = find(name).splits(folder, None)
    assert [each.name for each in again.train] == [each.name for each in splits.train]


@pytest.mark.parametrize(("name", "miniature"), [("vtab/sun397", "sun397"), ("vtab/eurosat", "eurosat")])
def test_a_test_set_is_drawn_where_there_is_none(name: str, miniature: str, made: Callable[[str], Path]) -> None:
    splits = find(name).splits(made(miniature), None)
    assert sum(sizes(splits)) == 12
    assert sum(counts(splits), Counter()) == {0: 4, 1: 4, 2: 4}
    assert len(splits.test) > len(splits.train)


def test_classes_have_the_names_of_the_data_set(made: Callable[[str], Path]) -> None:
    assert find("gicd/aircraft").splits(made("aircraft"), None).classes == ("707-320", "Beechcraft 1900", "F/A-18")
    pets = find("vtab/oxford_iiit_pet").splits(made("pets"), None).classes
    assert pets == ("Abyssinian", "American Bulldog", "Bengal")
    assert find("vtab/sun397").splits(made("sun397"), None).classes == ("abbey", "outhouse/outdoor", "zen_garden")


@pytest.mark.parametrize(("name", "miniature"), [("gicd/cifar100", "cifar100"), ("vtab/svhn", "svhn")])
def test_arrays_become_the_images_that_they_are(name: str, miniature: str, made: Callable[[str], Path]) -> None:
    splits = find(name).splits(made(miniature), None)
    whole = miniatures.arrays(len(splits.train) + len(splits.validation))
    for example in splits.train:
        index = int(example.name.rpartition("/")[2])
        np.testing.assert_array_equal(np.asarray(Decode().image(example.read())), whole[index])


def test_the_images_of_patch_camelyon_are_rows_of_its_files(made: Callable[[str], Path]) -> None:
    splits = find("vtab/patch_camelyon").splits(made("pcam"), None)
    whole = miniatures.arrays(13, 96)
    starts = {"train": 0, "valid": 6, "test": 10}
    for example in pickle.loads(pickle.dumps([*splits.train, *splits.validation, *splits.test])):
        file, row = example.name.rsplit("/", 1)
        index = starts[file.split("_")[-2]] + int(row)
        np.testing.assert_array_equal(np.asarray(Decode().image(example.read())), whole[index])


def test_a_library_that_is_missing_is_named_with_its_extra(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("pcam")
    monkeypatch.setattr("training.tasks.torchvision_sets.find_spec", lambda name: None)
    said = r"^vtab/patch_camelyon .* is read with h5py: pip install 'mosa-deploy\[h5py\]'$"
    with pytest.raises(ConfigError, match=said):
        find("vtab/patch_camelyon").splits(folder, None)


def test_files_are_read_as_they_lie(made: Callable[[str], Path]) -> None:
    folder = made("food101")
    for example in find("gicd/food101").splits(folder, None).test:
        assert example.read() == (folder / example.name).read_bytes()
        assert example.name.startswith("food-101/images/")


def test_the_classes_of_kitti_are_the_distances_of_the_nearest_vehicle(made: Callable[[str], Path]) -> None:
    splits = find("vtab/kitti").splits(made("kitti"), None)
    assert splits.classes == ("0", "1", "2", "3")
    found = {Path(each.name).stem: each.label for part in splits.sets().values() for each in part}
    # Up to 8 m, 20 m, beyond, and no vehicle; a bound belongs to the class before it.
    assert found == {
        **{"000000": 3, "000001": 2, "000002": 2, "000003": 1},
        **{"000004": 0, "000005": 1, "000006": 0, "000007": 3},
    }


@pytest.mark.parametrize(("distance", "label"), [(7.9, 0), (8.0, 0), (8.1, 1), (8.6, 2), (9.5, 3), (9.8, 4), (13.0, 5)])
def test_the_classes_of_clevr_dist_are_the_distances_of_the_nearest_object(
    distance: float, label: int, made: Callable[[str], Path]
) -> None:
    folder = made("clevr")
    path = folder / "clevr" / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    content = json.loads(path.read_text())
    content["scenes"][0]["objects"][1] = {"pixel_coords": [1, 2, distance]}
    for each in (0, 2):
        content["scenes"][0]["objects"][each] = {"pixel_coords": [1, 2, distance + 3]}
    path.write_text(json.dumps(content))
    assert find("vtab/clevr_dist").splits(folder, None).test[0].label == label


def test_caltech101_has_the_categories_without_the_background(made: Callable[[str], Path]) -> None:
    splits = find("vtab/caltech101").splits(made("caltech101"), None)
    assert splits.classes == ("Faces", "Leopards", "accordion")
    examples = [each for part in splits.sets().values() for each in part]
    assert Counter(each.label for each in examples) == {0: 4, 1: 5, 2: 3}
    assert all(each.name.split("/")[-2] == splits.classes[int(str(each.label))] for each in examples)


@pytest.mark.parametrize(
    ("name", "miniature", "damage", "text"),
    [
        ("vtab/kitti", "kitti", "Kitti/raw/training/label_2/000003.txt", r"torchvision's Kitti cannot read .*label_2"),
        (
            "vtab/caltech101",
            "caltech101",
            "caltech101/101_ObjectCategories/Faces/image_0002.jpg",
            r"1 of 11 images .*image_0002\.jpg",
        ),
        ("vtab/clevr_dist", "clevr", "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json", r"cannot read .*val_scenes"),
        (
            "vtab/patch_camelyon",
            "pcam",
            "pcam/camelyonpatch_level_2_split_valid_y.h5",
            r"torchvision's PCAM cannot read .*Dataset not found",
        ),
    ],
)
def test_a_set_that_lacks_a_file_is_one_error_and_no_download(
    name: str, miniature: str, damage: str, text: str, made: Callable[[str], Path]
) -> None:
    folder = made(miniature)
    (folder / damage).unlink()
    with pytest.raises(DataError, match=text) as caught:
        find(name).splits(folder, None)
    assert "\n" not in str(caught.value)
    assert "download=True" not in str(caught.value)


@pytest.mark.parametrize("name", ["vtab/kitti", "vtab/caltech101", "vtab/clevr_dist", "vtab/patch_camelyon"])
def test_a_set_that_is_not_there_is_one_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"or .* \(torchvision's \w+\)\. To get it: ") as caught:
        find(name).splits(tmp_path, None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_images_are_counted_and_named(made: Callable[[str], Path]) -> None:
    folder = made("food101")
    for path in sorted((folder / "food-101" / "images").rglob("*.jpg"))[:12]:
        path.unlink()
    with pytest.raises(
        DataError, match=r"^12 of 36 images of Food-101 are not in .*apple_pie/1005649.jpg.* and 2 more: un"
    ):
        find("gicd/food101").splits(folder, None)


def test_a_damaged_file_is_named_with_the_way_out(made: Callable[[str], Path]) -> None:
    folder = made("cifar100")
    (folder / "cifar-100-python" / "train").write_bytes(b"other")
    with pytest.raises(
        DataError, match=r"torchvision's CIFAR100 cannot read .*cifar-100-python \(RuntimeError: Dataset not"
    ):
        find("gicd/cifar100").splits(folder, None)


def test_a_missing_list_is_named(made: Callable[[str], Path]) -> None:
    folder = made("aircraft")
    (folder / "fgvc-aircraft-2013b" / "data" / "images_variant_val.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*images_variant_val.txt"):
        find("gicd/aircraft").splits(folder, None)


def test_labels_out_of_range_are_named(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("clevr")
    path = folder / "clevr" / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    content = json.loads(path.read_text())
    content["scenes"][1]["objects"] = content["scenes"][1]["objects"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"1 labels are not 0 to 7: clevr/CLEVR_v1.0/images/val/CLEVR_val_000001.png \(-2\)"
    ):
        find("vtab/clevr_count").splits(folder, None)


def test_lists_go_before_torchvisions_layout(tmp_path: Path, made: Callable[[str], Path]) -> None:
    from tests.support.miniatures import vtab_lists

    folder = made("eurosat")
    vtab_lists(folder / "vtab-1k" / "eurosat")
    assert "VTAB-1k's lists" in find("vtab/eurosat").splits(folder, None).note
