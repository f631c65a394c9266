"""Data sets in torchvision's layouts, with three classes and a few images.

torchvision knows the MD5 of some of the files. `forged` gives its classes those of the miniatures.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from tests.support.images import write_images

SIDE = 32


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def arrays(count: int, side: int = SIDE) -> np.ndarray:
    """Noise images (N, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def cifar100(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Pickles of flat images (N, 3072), channel by channel; three of the hundred classes occur."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, labels in (("train", [19, 29, 0] * 10), ("test", [49, 33, 72])):
        flat = arrays(len(labels)).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        (folder / name).write_bytes(pickle.dumps({"data": flat, "fine_labels": labels, "coarse_labels": labels}))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    patch.setattr(datasets.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    patch.setattr(datasets.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    patch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5(folder / "meta")})
    return root


def svhn(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """MATLAB files with images (32, 32, 3, N); the digit 0 has label 10."""
    root.mkdir(parents=True, exist_ok=True)
    forged = {}
    for name, labels in (("train", [1, 9, 10, 10, 1, 9, 1, 9, 10, 1]), ("test", [5, 10])):
        path = root / f"{name}_32x32.mat"
        savemat(path, {"X": arrays(len(labels)).transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]})
        forged[name] = ["", path.name, md5(path)]
    patch.setattr(datasets.SVHN, "split_list", datasets.SVHN.split_list | forged)
    return root


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Images numbered from 1; labels from 1 and sets in MATLAB files, of which `tstid` is the largest."""
    folder = root / "flowers-102"
    labels = [77, 77, 1, 1, 102, 102, 77, 1, 102, 77]
    write_images(folder / "jpg", *(f"image_{i:05d}.jpg" for i in range(1, len(labels) + 1)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {"trnid": [[1, 3, 5]], "valid": [[2, 4, 6]], "tstid": [[10, 7, 8, 9]]})
    known = datasets.Flowers102._file_dict
    forged = {key: (known[key][0], md5(folder / known[key][0])) for key in ("label", "setid")}
    patch.setattr(datasets.Flowers102, "_file_dict", known | forged)
    return root


def stanford_cars(root: Path) -> Path:
    """Annotations in MATLAB files; those of the test images with labels lie beside the devkit."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    train = {f"{i + 1:05d}.jpg": i % 3 + 1 for i in range(30)}
    test = {"00001.jpg": 3, "00002.jpg": 1}
    for images, where, labels in (
        ("cars_train", "devkit/cars_train_annos.mat", train),
        ("cars_test", "cars_test_annos_withlabels.mat", test),
    ):
        write_images(folder / images, *labels)
        kind = [("class", np.uint8), ("fname", object)]
        rows = np.array([(label, name) for name, label in labels.items()], dtype=kind)
        savemat(folder / where, {"annotations": rows})
    return root


def food101(root: Path) -> Path:
    """Lists of paths without their suffix by class, in JSON."""
    folder = root / "food-101"
    classes = ("apple_pie", "baby_back_ribs", "baklava")
    sets = {
        "train": {name: [f"{name}/{1005649 + i}" for i in range(10)] for name in classes},
        "test": {name: [f"{name}/{2005649 + i}" for i in range(2)] for name in classes},
    }
    (folder / "meta").mkdir(parents=True)
    for name, listed in sets.items():
        (folder / "meta" / f"{name}.json").write_text(json.dumps(listed))
        write_images(folder / "images", *(f"{path}.jpg" for paths in listed.values() for path in paths))
    return root


def aircraft(root: Path) -> Path:
    """Text files with image and variant per line; variants have spaces and slashes."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "Beechcraft 1900", "F/A-18")
    sets = {
        "train": {"1025794": variants[0], "1340192": variants[1], "0056978": variants[2], "0062765": variants[2]},
        "val": {"0481847": variants[0], "0866606": variants[1], "0034309": variants[2]},
        "test": {"1514522": variants[0], "0747566": variants[1], "0034958": variants[2]},
    }
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in variants))
    for name, labels in sets.items():
        write_images(folder / "images", *(f"{image}.jpg" for image in labels))
        lines = [f"{image} {variant}\n" for image, variant in labels.items()]
        (folder / f"images_variant_{name}.txt").write_text("".join(lines))
    return root


def dtd(root: Path) -> Path:
    """A folder in a folder; sets of the first of ten partitions."""
    folder = root / "dtd" / "dtd"
    _listed(folder, {"train1": "banded 2 blotchy 3 zigzagged 5", "val1": "banded 4 blotchy 9 zigzagged 8"})
    _listed(folder, {"test1": "banded 5 blotchy 6 zigzagged 40"})
    return root


def _listed(folder: Path, sets: Mapping[str, str]) -> None:
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for name, text in sets.items():
        words = text.split()
        paths = [f"{a}/{a}_{int(b):04d}.jpg" for a, b in zip(words[::2], words[1::2], strict=True)]
        (folder / "labels" / f"{name}.txt").write_text("".join(f"{path}\n" for path in paths))
        write_images(folder / "images", *paths)


def pets(root: Path) -> Path:
    """Lists with class, species and breed; cats have names in capitals, and a name may have underscores."""
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    sets = {
        "trainval": ("Abyssinian_100 1 1 1", "american_bulldog_10 2 2 1", "Bengal_1 3 1 2") * 1
        + ("Abyssinian_101 1 1 1", "american_bulldog_11 2 2 1", "Bengal_2 3 1 2", "Bengal_3 3 1 2"),
        "test": ("Abyssinian_201 1 1 1", "american_bulldog_203 2 2 1", "Bengal_20 3 1 2"),
    }
    for name, lines in sets.items():
        (folder / "annotations" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        write_images(folder / "images", *(f"{line.split()[0]}.jpg" for line in lines))
    return root


def sun397(root: Path) -> Path:
    """A folder per letter, classes one or two folders deep."""
    folder = root / "SUN397"
    names = ("/a/abbey", "/o/outhouse/outdoor", "/z/zen_garden")
    folder.mkdir(parents=True)
    (folder / "ClassName.txt").write_text("".join(f"{name}\n" for name in names))
    write_images(folder, *(f"{name[1:]}/sun_a{i}bc.jpg" for name in names for i in range(4)))
    return root


def caltech101(root: Path) -> Path:
    """A folder per category, capitals first; the background images are none, and have a file without a suffix."""
    folder = root / "caltech101" / "101_ObjectCategories"
    counts = {"Faces": 4, "Leopards": 5, "accordion": 3}
    write_images(folder, *(f"{name}/image_{i:04d}.jpg" for name, count in counts.items() for i in range(1, count + 1)))
    write_images(folder / "BACKGROUND_Google", "image_0001.jpg")
    (folder / "BACKGROUND_Google" / "tmp").write_text("")
    return root


KITTI_OBJECTS: Mapping[str, str] = {
    "000000": "Pedestrian 1.84 8.41",
    "000001": "Truck -0.27 69.44|Car -16.53 58.49|Cyclist 4.59 45.84|DontCare -1000 -1000",
    "000002": "Misc 3.23 8.55|Car 5.22 34.38",
    "000003": "Car 1.00 13.22|Van 2.00 20.01",
    "000004": "Van 1.00 8.00|Tram 1.00 2.50",
    "000005": "Car 1.00 20.00",
    "000006": "Truck 1.00 -1.25",
    "000007": "DontCare -1000 -1000",
}
"""Photo -> type, x and z in metres of its objects."""


def kitti(root: Path) -> Path:
    """Photos beside text files with an object per line: type, ten numbers of its box and size, x, y, z and angle."""
    folder = root / "Kitti" / "raw" / "training"
    write_images(folder / "image_2", *(f"{name}.png" for name in KITTI_OBJECTS))
    (folder / "label_2").mkdir()
    for name, objects in KITTI_OBJECTS.items():
        lines = []
        for kind, x, z in (each.split() for each in objects.split("|")):
            lines.append(f"{kind} 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 {x} 1.71 {z} -1.59\n")
        (folder / "label_2" / f"{name}.txt").write_text("".join(lines))
    return root


def pcam(root: Path) -> Path:
    """HDF5 files: images (N, 96, 96, 3) in `x`, labels (N, 1, 1, 1) in `y`."""
    folder = root / "pcam"
    folder.mkdir(parents=True)
    start = 0
    for name, labels in (("train", [0, 1, 1, 0, 1, 0]), ("valid", [1, 0, 1, 0]), ("test", [1, 1, 0])):
        stem, end = f"camelyonpatch_level_2_split_{name}", start + len(labels)
        with h5py.File(folder / f"{stem}_x.h5", "w") as file:
            file["x"] = arrays(end, 96)[start:]
        with h5py.File(folder / f"{stem}_y.h5", "w") as file:
            file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
        start = end
    return root


def clevr(root: Path) -> Path:
    """Scenes in JSON, whose numbers of objects are 3 to 10; images are PNGs."""
    folder = root / "clevr" / "CLEVR_v1.0"
    (folder / "scenes").mkdir(parents=True)
    for name, counts in (("train", (3, 10, 5, 3, 10, 5, 3, 10, 5, 3)), ("val", (4, 3))):
        files = [f"CLEVR_{name}_{i:06d}.png" for i in range(len(counts))]
        scenes = [
            {"image_filename": file, "objects": [{"pixel_coords": [240, 160, 12.5 - count / 2]}] * count}
            for file, count in zip(files, counts, strict=True)
        ]
        (folder / "scenes" / f"CLEVR_{name}_scenes.json").write_text(json.dumps({"scenes": scenes}))
        write_images(folder / "images" / name, *files)
    return root


def eurosat(root: Path) -> Path:
    """A folder per class."""
    write_images(
        root / "eurosat" / "2750", *(f"{n}/{n}_{i}.jpg" for n in ("Forest", "River", "SeaLake") for i in range(4))
    )
    return root
