"""Benchmark data sets in their real formats, with three classes and a few images: the names and quirks are theirs.

`python -m tests.support.miniatures FOLDER` writes one of VTAB-1k.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.images import jpeg, write_images

VTAB_LABELS: Mapping[str, Sequence[int]] = {
    "train800": (0, 1, 2, 0, 1, 2, 0, 1, 2, 0),
    "val200": (0, 1, 2),
    "test": (2, 1, 0, 0),
}
"""List -> the labels of its images."""

CLASSES = 3


def vtab_lists(folder: Path, labels: Mapping[str, Sequence[int]] = VTAB_LABELS) -> Path:
    """The folder of a task as `get_vtab1k.py` writes it: every list has copies of its images in a folder of its own."""
    whole = {**labels, "train800val200": (*labels["train800"], *labels["val200"])}
    for name, given in whole.items():
        paths = [f"images/{name}/{i:06d}.jpg" for i in range(len(given))]
        write_levels(folder, dict(zip(paths, given, strict=True)))
        lines = [f"{path} {label}\n" for path, label in zip(paths, given, strict=True)]
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def write_levels(folder: Path, labels: Mapping[str, int]) -> None:
    """Write an image under each path, whose grey level is that of its class."""
    for path, label in labels.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(40 + 80 * label))


def vpt_json(folder: Path, images: str, sets: Mapping[str, Mapping[str, int | str]]) -> Path:
    """A data set with VPT's splits: file -> class, in `<set>.json`."""
    for name, labels in sets.items():
        write_images(folder / images, *labels)
        (folder / f"{name}.json").write_text(json.dumps(labels))
    return folder


def cub(folder: Path) -> Path:
    """CUB-200-2011: a folder per class, classes from 1."""
    albatross, sooty, ani = "001.Black_footed_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"
    sets = {
        "train": {
            f"{albatross}/Black_Footed_Albatross_0046_18.jpg": 1,
            f"{sooty}/Sooty_Albatross_0001_1071.jpg": 3,
            f"{ani}/Groove_Billed_Ani_0002_1670.jpg": 4,
            f"{ani}/Groove_Billed_Ani_0003_1561.jpg": 4,
        },
        "val": {
            f"{albatross}/Black_Footed_Albatross_0002_55.jpg": 1,
            f"{sooty}/Sooty_Albatross_0002_796340.jpg": 3,
            f"{ani}/Groove_Billed_Ani_0004_1528.jpg": 4,
        },
        "test": {
            f"{albatross}/Black_Footed_Albatross_0007_796138.jpg": 1,
            f"{sooty}/Sooty_Albatross_0003_1078.jpg": 3,
            f"{ani}/Groove_Billed_Ani_0005_1750.jpg": 4,
        },
    }
    return vpt_json(folder, "images", sets)


def nabirds(folder: Path) -> Path:
    """NABirds: folders of four digits, classes with gaps, of which 295 comes before 1010."""
    sets = {
        "train": {
            "0295/86d0a2d0c1a94ec9ae0c9d1b6b0ef0b4.jpg": 295,
            "0817/0001afd499a14a67b940d419413e23b3.jpg": 817,
            "1010/29b43ae5a7ba4c5da8f3b1c7e80e3ab2.jpg": 1010,
            "1010/5fd4d2b0c6c84c7e9c7b4e9c0ff7d6b1.jpg": 1010,
        },
        "val": {"0295/1d2f3b.jpg": 295, "0817/000332b8997c4.jpg": 817, "1010/7aa0.jpg": 1010},
        "test": {"0295/2e4a6c.jpg": 295, "0817/00b1c2.jpg": 817, "1010/8bb1.jpg": 1010},
    }
    return vpt_json(folder, "images", sets)


def flowers(folder: Path) -> Path:
    """Oxford Flowers with VPT's splits: all images in one folder, so that classes have numbers alone."""
    sets = {
        "train": {"jpg/image_06765.jpg": 1, "jpg/image_05145.jpg": 2, "jpg/image_06734.jpg": 10},
        "val": {"jpg/image_06773.jpg": 1, "jpg/image_05137.jpg": 2, "jpg/image_07086.jpg": 10},
        "test": {f"jpg/image_0{i}.jpg": label for i, label in ((6755, 1), (5097, 2), (7090, 10), (7091, 10))},
    }
    return vpt_json(folder, "", sets)


def dogs(folder: Path) -> Path:
    """Stanford Dogs: `Images`, folders by WordNet id; classes are texts here."""
    names = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02116738-African_hunting_dog")
    sets = {
        "train": {f"{name}/{name[:9]}_{i}.jpg": name for name in names for i in (7, 199)},
        "val": {f"{name}/{name[:9]}_242.jpg": name for name in names},
        "test": {names[0] + "/n02085620_2650.jpg": names[0]},
    }
    return vpt_json(folder, "Images", {key: dict(value) for key, value in sets.items()})


def cars(folder: Path) -> Path:
    """Stanford Cars with VPT's splits: two folders that number their images alike."""
    sets = {
        "train": {"cars_train/00001.jpg": 14, "cars_train/00002.jpg": 3, "cars_train/00003.jpg": 91},
        "val": {"cars_train/00004.jpg": 14, "cars_train/00005.jpg": 3, "cars_train/00006.jpg": 91},
        "test": {
            "cars_test/00001.jpg": 91,
            "cars_test/00002.jpg": 14,
            "cars_test/00003.jpg": 3,
            "cars_test/00004.jpg": 3,
        },
    }
    return vpt_json(folder, "", sets)


if __name__ == "__main__":
    vtab_lists(Path(sys.argv[1]))
