"""The images for the canary, the calibration and the accuracy of a converted task: the user's own, or smooth noise."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from export.facts import Fact
from mosa_deploy.bundles.calibration import CALIBRATION_IMAGES
from mosa_deploy.bundles.canary import SIZE
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.image_files import left_out, list_folder
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.set_names import set_of

WAVES = 6
"""Random colours along each side of a smooth image; the pixels between them are interpolated."""


@dataclass(frozen=True)
class SampleImages:
    """The images below the folder of `--images`."""

    folder: Path
    paths: tuple[Path, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the class folders, sorted; none if the images lie in no folders."""
        return tuple(sorted({label for path in self.paths if (label := self.label(path)) is not None}))

    def label(self, path: Path) -> str | None:
        """The class folder in which an image lies, below the folder of a set if there is one."""
        *parents, _ = path.relative_to(self.folder).parts
        if parents and set_of(parents[0]):
            parents = parents[1:]
        return parents[0] if parents else None


@dataclass(frozen=True)
class DrawnImages:
    """What is kept and computed of the images."""

    first: list[bytes]
    """For the canary, still encoded."""
    pixels: Pixels
    """(n, H, W, 3), for calibration."""
    labels: list[str | None]
    """The class folder of each."""


def sample_images(folder: Path) -> SampleImages:
    """The images below the folder of `--images`.

    Raises:
        DataError: there is no such folder, or it has no images.
    """
    if folder.is_file():
        raise DataError(f"--images {folder} is a file: unpack it, and give the folder of images")
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder; give a folder of images of the task")
    listing = list_folder(folder)
    if not listing.images:
        line = left_out(listing.others.values(), listing.leftovers)
        beside = f" ({line})" if line else ""
        raise DataError(f"--images {folder} holds no images{beside}: give a folder of images of the task")
    return SampleImages(folder, tuple(sorted(folder.joinpath(*parts) for parts in listing.images)))


def read_images(images: SampleImages, preprocess: Preprocess, labelled: bool = True) -> DrawnImages:
    """The first images, still encoded, and up to 256 random ones, decoded; with their classes if `labelled`.

    Raises:
        DataError: an image cannot be read.
    """
    rng = np.random.default_rng(derive(0, "calibration"))
    drawn = [images.paths[i] for i in rng.permutation(len(images.paths))[:CALIBRATION_IMAGES]]
    first = [_checked(path, preprocess)[0] for path in images.paths[:SIZE]]
    pixels = np.stack([_checked(path, preprocess)[1] for path in drawn])
    return DrawnImages(first, pixels, [images.label(path) if labelled else None for path in drawn])


def check_labels(images: SampleImages, names: Fact[tuple[str, ...]], min_accuracy: float | None) -> None:
    """Compare the class folders with the class names.

    Raises:
        ConfigError: a folder is named after no class, or an accuracy is asked for that cannot be computed.
    """
    if min_accuracy is not None and not (images.folders and names.known):
        missing = "its images lie in no folders" if names.known else "the classes have no names, give --classes"
        raise ConfigError(f"--min-accuracy: no accuracy on --images {images.folder}: {missing}")
    if images.folders and not names.known:
        print(f"no accuracy on --images {images.folder}: the classes have no names, give --classes")
        return
    classes, unknown = names.value, [name for name in images.folders if name not in names.value]
    if unknown:
        raise ConfigError(
            f"--images {images.folder} has folders {', '.join(unknown)}, the task's classes are {', '.join(classes)}:"
            " rename the folders or give --classes, or put the images into one folder"
        )


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
