"""The images that a run leaves beside its bundle for its export: `calibration.npz`.

images      (n, H, W, 3) uint8   training images, from which int8 learns the range of every activation
validation  (m, H, W, 3) uint8   images that the task was not tuned on, if the run had any labelled ones
labels      (m,) integers        their classes
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import replacing

FILE = "calibration.npz"

LEAST = 32
"""For int8: fewer images miss the outliers, which set the ranges of activations."""

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Samples:
    """What `calibration.npz` holds."""

    images: Pixels
    validation: Pixels
    """Empty where there are no labels."""
    labels: Labels

    def compared(self, count: int) -> tuple[Pixels, Labels]:
        """The images on which stages are compared, and the labels of as many of them as have one: all or none."""
        if len(self.labels):
            return self.validation[:count], self.labels[:count]
        return self.images[:count], self.labels


def read_samples(folder: Path, size: tuple[int, int]) -> Samples | None:
    """The images of a run, or None if it has none; `size` is (H, W) of what the backbone reads.

    Raises:
        DataError: the file is damaged, empty, or holds images of another size.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    again = f"remove it, or copy the run again with its {FILE}"
    try:
        # numpy leaves a path's file open when it fails, but not one that is open already.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            images: NDArray[Any] = arrays["images"]
            validation: NDArray[Any] = arrays.get("validation", images[:0])
            labels: NDArray[Any] = arrays.get("labels", np.empty(0, dtype=np.int64))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}): {again}") from None
    if images.ndim != 4 or not len(images):
        raise DataError(f"{path} holds no images: {again}")
    for each in (images, validation):
        if each.dtype != np.uint8 or each.shape[1:] != (*size, 3):
            raise DataError(
                f"{path} holds images of {each.shape[1:]} {each.dtype}, the task reads {(*size, 3)} uint8: {again}"
            )
    if labels.shape != validation.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} holds {len(validation)} validation images and labels of {labels.shape}: {again}")
    return Samples(images, validation, labels)


def write_calibration(folder: Path, images: Pixels) -> None:
    """Replace the calibration images of a run, (n, H, W, 3); they have no labels."""
    with replacing(folder / FILE) as aside, aside.open("wb") as handle:
        np.savez_compressed(handle, images=images)


def require_enough(samples: Samples | None, folder: Path) -> None:
    """See to it that a run has images from which int8 learns the range of every activation.

    Raises:
        DataError: there are none, or too few.
    """
    way_out = "tune the task again, or leave int8 out of --precision"
    if samples is None:
        raise DataError(f"{folder / FILE}: no such file; int8 is calibrated on it: {way_out}")
    if len(samples.images) < LEAST:
        raise DataError(f"{folder / FILE} holds {len(samples.images)} images, int8 needs at least {LEAST}: {way_out}")
