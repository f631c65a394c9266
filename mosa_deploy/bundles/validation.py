"""Validation images that travel with a bundle, so that a service can compare a quantised graph with the fp32 one.

They are those that the run kept in `calibration.npz`, in the size that the task reads: `Preprocess.unresized` reads
them. A `.mosa` file holds them as `validation/<class>/NNN.png`, an exported task in `validation.zip` by the same names;
`mosa_deploy.bundles.gate` says how several labels are written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mosa_deploy.bundles.calibration import CALIBRATION, CALIBRATION_IMAGES, Labels, Samples, read_samples
from mosa_deploy.bundles.decode import encode, open_image
from mosa_deploy.bundles.gate import LabelledImage, label_fault, unpack_images
from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.store_layout import VALIDATION
from mosa_deploy.errors import BundleError, DataError

PREFIX = "validation/"

BUDGET = 3 << 20
"""The most bytes that they take. With an adapter of rank 64 for a ViT-B and the largest canary that makes 10 MB, which
a service takes by default (MOSA_MAX_UPLOAD); mostly it is half of that."""
QUALITY = 85
"""The quality of JPEGs, which are kept if PNGs would exceed the budget. 256 photos of 224 px take 21 MB as PNG, and
3 MB as JPEG. The service compares two graphs on the same pixels, so what JPEG changes in them does not count as a loss.
"""


def encode_validation(samples: Samples, classes: Sequence[str]) -> tuple[LabelledImage, ...]:
    """The validation images of a run: without loss if they fit into the budget, else the first JPEGs that do.

    Raises:
        DataError: a label is no class.
    """
    labels = named(samples.labels, classes)
    exact = _encoded(samples.validation, labels, ".png", encode)
    if len(exact) == len(labels):
        return exact
    return _encoded(samples.validation, labels, ".jpg", lambda pixels: encode(pixels, "jpeg", quality=QUALITY))


def named(labels: Labels, classes: Sequence[str]) -> list[str | tuple[str, ...]]:
    """The class of each image by its number in (n,), or its labels by their 0 or 1 in (n, K).

    Raises:
        DataError: there are other classes.
    """
    if labels.ndim == 2:
        if labels.shape[1] != len(classes):
            raise DataError(f"{CALIBRATION} has {labels.shape[1]} labels, the task {len(classes)}: copy the run again")
        return [tuple(name for name, has in zip(classes, row, strict=True) if has) for row in labels]
    odd = [label for label in labels.tolist() if not 0 <= label < len(classes)]
    if odd:
        raise DataError(f"{CALIBRATION} has label {odd[0]}, the task has {len(classes)} classes: copy the run again")
    return [classes[label] for label in labels.tolist()]


def _encoded(
    validation: Pixels, labels: Sequence[str | tuple[str, ...]], suffix: str, encoder: Callable[[Pixels], bytes]
) -> tuple[LabelledImage, ...]:
    """As many images as fit into the budget; they are in random order since the run drew them."""
    images, left = list[LabelledImage](), BUDGET
    for i, (pixels, label) in enumerate(zip(validation, labels, strict=True)):
        content = encoder(pixels)
        left -= len(content)
        if left < 0:
            break
        images.append(LabelledImage(f"{i:03}{suffix}", label, content))
    return tuple(images)


def read_validation(folder: Path, record: Record) -> tuple[LabelledImage, ...]:
    """The validation images beside the bundle in a folder, an exported task's or a run's; none if it has none.

    Raises:
        BundleError: those of an exported task are damaged.
        DataError: those of a run are damaged.
    """
    path = folder / VALIDATION
    if path.is_file():
        try:
            return unpack_images(path.read_bytes(), PREFIX)
        except ValueError as error:
            raise BundleError(f"{path} is damaged ({error}): remove it, or export the task again") from None
    samples = read_samples(folder, record.preprocess.size)
    return encode_validation(samples, record.classes) if samples else ()


def check_validation(images: Sequence[LabelledImage], record: Record) -> None:
    """Compare validation images with the bundle that they came with; only their headers are read.

    Raises:
        BundleError: there are too many, a label is no class, or one is no image of the input's size.
    """
    if len(images) > CALIBRATION_IMAGES:
        raise BundleError(f"{len(images)} images in {PREFIX}: a bundle carries at most {CALIBRATION_IMAGES}")
    height, width = record.preprocess.size
    for image in images:
        if fault := label_fault(image, record):
            raise BundleError(f"{PREFIX}: {fault}")
        try:
            with open_image(image.content) as opened:
                size = opened.size
        except Exception as error:  # Pillow raises struct.error, TypeError and RuntimeError too.
            raise BundleError(
                f"{image.below(PREFIX)} is no image ({type(error).__name__}): pack the run again"
            ) from None
        if size != (width, height):
            raise BundleError(
                f"{image.below(PREFIX)} has {size[0]} x {size[1]} pixels, the task reads {width} x {height}: pack the"
                " run again"
            )
