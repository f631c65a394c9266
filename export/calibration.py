"""The training images that a run leaves beside its bundle, from which int8 learns the range of every activation."""

import zipfile
from pathlib import Path

import numpy as np

from mosa_deploy.errors import DataError
from mosa_deploy.preprocess import Array, Preprocess

CALIBRATION = "calibration.npz"

LEAST = 32
"""Fewer images miss the outliers, which set the ranges."""

WAY_OUT = "tune the task again, or leave int8 out of --precision"


def read_calibration(folder: Path, preprocess: Preprocess) -> Array:
    """`calibration.npz` of a run, as the backbone reads it (n, 3, H, W).

    Raises:
        DataError: it is missing, damaged, empty, too small, or of images of another size.
    """
    path = folder / CALIBRATION
    try:
        # Opened here: numpy leaves a damaged archive open.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            pixels = stored["images"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; int8 is calibrated on it: {WAY_OUT}") from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no array `images` ({type(error).__name__}): {WAY_OUT}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(f"{path} holds {pixels.dtype} {pixels.shape}, not uint8 (n, H, W, 3): {WAY_OUT}")
    if pixels.shape[1:3] != preprocess.size:
        sizes = " x ".join(map(str, pixels.shape[1:3])), " x ".join(map(str, preprocess.size))
        raise DataError(f"{path} holds images of {sizes[0]}, the backbone reads {sizes[1]}: {WAY_OUT}")
    if len(pixels) < LEAST:
        raise DataError(f"{path} holds {len(pixels)} images, int8 needs at least {LEAST}: {WAY_OUT}")
    return preprocess.normalise(pixels)
