"""The calibration images that a run leaves beside its bundle: `calibration.npz`, (n, H, W, 3) uint8."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.errors import DataError
from mosa_deploy.files import replacing
from mosa_deploy.preprocess import Pixels

FILE = "calibration.npz"

LEAST = 32
"""For int8: fewer images miss the outliers, which set the ranges of activations."""


def read_calibration(folder: Path, size: tuple[int, int]) -> Pixels | None:
    """The calibration images of a run, or None if it has none; `size` is (H, W) of what the backbone reads.

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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}): {again}") from None
    if images.ndim != 4 or not len(images):
        raise DataError(f"{path} holds no images: {again}")
    if images.dtype != np.uint8 or images.shape[1:] != (*size, 3):
        raise DataError(
            f"{path} holds images of {images.shape[1:]} {images.dtype}, the task reads {(*size, 3)} uint8: {again}"
        )
    return images


def write_calibration(folder: Path, images: Pixels) -> None:
    """Replace the calibration images of a run, (n, H, W, 3)."""
    with replacing(folder / FILE) as aside, aside.open("wb") as handle:
        np.savez_compressed(handle, images=images)


def require_enough(images: Pixels | None, folder: Path) -> Pixels:
    """The images of a run from which int8 learns the range of every activation.

    Raises:
        DataError: there are none, or too few.
    """
    way_out = "tune the task again, or leave int8 out of --precision"
    if images is None:
        raise DataError(f"{folder / FILE}: no such file; int8 is calibrated on it: {way_out}")
    if len(images) < LEAST:
        raise DataError(f"{folder / FILE} holds {len(images)} images, int8 needs at least {LEAST}: {way_out}")
    return images
