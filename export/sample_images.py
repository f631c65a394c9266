"""The images for the canary and the calibration of a converted task: the user's own, or smooth noise without any."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mosa_deploy.bundles.calibration import CALIBRATION_IMAGES
from mosa_deploy.bundles.canary import SIZE
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.image_files import list_images
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import DataError
from mosa_deploy.utils.seeds import derive

WAVES = 6
"""Random colours along each side of a smooth image; the pixels between them are interpolated."""


def sample_images(folder: Path) -> list[Path]:
    """The paths of the images below the folder of `--images`.

    Raises:
        DataError: there is no such folder, or it has no images.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder; give a folder of images of the task")
    images = list_images(folder)
    if not images:
        raise DataError(f"--images {folder} holds no images: give a folder of images of the task")
    return images


def read_images(paths: Sequence[Path], preprocess: Preprocess) -> tuple[list[bytes], Pixels]:
    """(canary, calibration): the first images, still encoded, and up to 256 random ones, decoded (n, H, W, 3).

    Raises:
        DataError: an image cannot be read.
    """
    rng = np.random.default_rng(derive(0, "calibration"))
    drawn = rng.permutation(len(paths))[:CALIBRATION_IMAGES]
    first = [_checked(path, preprocess)[0] for path in paths[:SIZE]]
    return first, np.stack([_checked(paths[i], preprocess)[1] for i in drawn])


def _checked(path: Path, preprocess: Preprocess) -> tuple[bytes, Pixels]:
    try:
        content = path.read_bytes()
        return content, preprocess.read(content)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable, or remove it from --images") from None
    except DataError as error:
        raise DataError(f"{path}: {error}; or remove it from --images") from None


def smooth_noise(size: tuple[int, int]) -> list[bytes]:
    """Encoded images (H, W) of smooth random colours, as many as a canary has. They resemble no task's images."""
    height, width = size
    rng = np.random.default_rng(derive(0, "smooth noise"))
    grids = rng.integers(0, 256, (SIZE, WAVES, WAVES, 3), dtype=np.uint8)
    smooth = (Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC) for grid in grids)
    return [encode(np.asarray(image)) for image in smooth]
