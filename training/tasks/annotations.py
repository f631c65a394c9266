"""Files and labels of torchvision's data sets that do not give them: `Torchvision.files`.

The distances of KITTI and CLEVR are VTAB's (X. Zhai et al., arXiv 1910.04867): a class is the interval in which the
distance lies, between the bounds of its authors' code.
"""

import bisect
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mosa_deploy.bundles.decode import encode

Labelled = Iterator[tuple[Path, int]]

VEHICLES = ("Car", "Van", "Truck")

NO_VEHICLE = 1000.0
"""The distance in metres of a vehicle that is not there."""

KITTI_BOUNDS = (8.0, 20.0, 999.0)
"""Metres along the camera's axis; a photo without a vehicle is beyond the last one."""

CLEVR_BOUNDS = (8.0, 8.5, 9.0, 9.5, 10.0)
"""Units of the scene, along the camera's axis."""


def interval(distance: float, bounds: tuple[float, ...]) -> int:
    """The number of bounds below a distance; one that is equal to a bound lies before it."""
    return bisect.bisect_left(bounds, distance)


def pets(dataset: Any) -> Labelled:
    """OxfordIIITPet has no public name for its files."""
    return zip(dataset._images, dataset._labels, strict=True)


def caltech(dataset: Any) -> Labelled:
    """Caltech101 numbers the files of each category from 1; its background images are no category there."""
    folder = Path(dataset.root) / "101_ObjectCategories"
    for number, label in zip(dataset.index, dataset.y, strict=True):
        yield folder / dataset.categories[label] / f"image_{number:04d}.jpg", label


def patches(dataset: Any) -> Labelled:
    """PCAM keeps images and labels in two HDF5 files; an image is named by its row, as if that were a file in them."""
    images, labels = (dataset._FILES[dataset._split][each][0] for each in ("images", "targets"))
    with dataset.h5py.File(dataset._base_folder / labels) as file:
        found = file["y"][:, 0, 0, 0]
    for row, label in enumerate(found):
        yield dataset._base_folder / images / f"{row:06d}", int(label)


def patch(path: Path) -> Callable[[], bytes]:
    """What reads an image that `patches` named."""
    return partial(_patch, path)


def _patch(path: Path) -> bytes:
    import h5py

    with h5py.File(path.parent) as file:
        return encode(file["x"][int(path.name)])


def vehicle_distances(dataset: Any) -> Labelled:
    """Kitti with the distance of the nearest car, van or truck."""
    for i, path in enumerate(dataset.images):
        depths = [each["location"][2] for each in dataset._parse_target(i) if each["type"] in VEHICLES]
        yield Path(path), interval(min(depths, default=NO_VEHICLE), KITTI_BOUNDS)


def object_distances(dataset: Any) -> Labelled:
    """CLEVRClassification with the distance of the nearest object, the third of its pixel coordinates."""
    scenes = dataset._data_folder / "scenes" / f"CLEVR_{dataset._split}_scenes.json"
    nearest = {
        scene["image_filename"]: min(each["pixel_coords"][2] for each in scene["objects"])
        for scene in json.loads(scenes.read_bytes())["scenes"]
    }
    for path in dataset._image_files:
        yield path, interval(nearest[path.name], CLEVR_BOUNDS)
