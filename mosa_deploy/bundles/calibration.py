"""`calibration.npz`: the images that a run leaves beside its bundle for its export.

images      (n, H, W, 3) uint8   training images, from which int8 learns the range of every activation, and on which
                                 `mosa tune --extend` goes on
classes     (n,) integers        their classes; empty, or missing, where an image may have several labels
validation  (m, H, W, 3) uint8   images that the task was not tuned on; may be empty, or missing
labels      (m,) integers        their classes, or (m, K) of 0 and 1 where an image may have several labels
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import replacing

CALIBRATION = "calibration.npz"

CALIBRATION_IMAGES = 256
"""How many images of each kind a run keeps at most, unless `--exemplars` asks for more training images."""

Labels = NDArray[np.integer[Any]]

NONE: Labels = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Samples:
    """What `calibration.npz` holds."""

    images: Pixels
    validation: Pixels
    """Empty where there are no labels."""
    labels: Labels
    classes: Labels = field(default_factory=NONE.copy)
    """Those of the training images; empty where they are not known."""

    @classmethod
    def unlabelled(cls, images: Pixels) -> Self:
        """Training images alone."""
        return cls(images, images[:0], NONE)

    def compared(self, count: int) -> Pixels:
        """Up to `count` images on which stages are compared: of validation, if there are any."""
        return (self.validation if len(self.labels) else self.images)[:count]


def read_samples(folder: Path, size: tuple[int, int]) -> Samples | None:
    """The images of a run, or None if it has none; `size` is the backbone's (H, W).

    Raises:
        DataError: the file is damaged or empty, or holds images of another size.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    again = f"remove it, or copy the run again with its {CALIBRATION}"
    try:
        # Given a path, numpy leaves the file open when it fails; given an open file, it does not.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            images: NDArray[Any] = arrays["images"]
            validation: NDArray[Any] = arrays.get("validation", images[:0])
            labels: NDArray[Any] = arrays.get("labels", NONE)
            classes: NDArray[Any] = arrays.get("classes", NONE)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}): {again}") from None
    if images.ndim != 4 or not len(images):
        raise DataError(f"{path} holds no images: {again}")
    for each in (images, validation):
        if each.dtype != np.uint8 or each.shape[1:] != (*size, 3):
            raise DataError(
                f"{path} holds images of {each.shape[1:]} {each.dtype}, the task reads {(*size, 3)} uint8: {again}"
            )
    if labels.shape[:1] != validation.shape[:1] or labels.ndim > 2 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} holds {len(validation)} validation images and labels of {labels.shape}: {again}")
    if classes.shape not in ((0,), images.shape[:1]) or not np.issubdtype(classes.dtype, np.integer):
        raise DataError(f"{path} holds {len(images)} training images and classes of {classes.shape}: {again}")
    return Samples(images, validation, labels, classes)


def write_samples(folder: Path, samples: Samples) -> None:
    """Replace the calibration images of a run."""
    with replacing(folder / CALIBRATION) as aside, aside.open("wb") as handle:
        np.savez_compressed(handle, **vars(samples))
