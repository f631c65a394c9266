"""Read the images of all sets of a data set once, and list every one that cannot be read before anything stops."""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from mosa_deploy.bundles.decode import allow_pixels
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import LISTED, DataError
from mosa_deploy.utils.files import write_csv
from training.data import Images, ImageSet, label_tensor
from training.duplicates import Mark
from training.headers import Headers
from training.inspection import Finding, Inspection, inspect
from training.tasks.base import Example
from training.tune_options import ReadOptions

DARK = 64
"""A data set without any pixel of at least this value of 255 is suspect."""


class Unreadable(NamedTuple):
    """An image that cannot be read, and why."""

    set: str
    file: str
    reason: str


class Digest(NamedTuple):
    """The SHA-256 of an image's file."""

    set: str
    file: str
    sha256: str


@dataclass
class Reader:
    """Decodes sets one after another and remembers what is odd about them."""

    preprocess: Preprocess
    options: ReadOptions = field(default_factory=ReadOptions)
    total: int = 0
    """The number of images that were tried."""
    beside: int = 0
    """The number of images in sets that are not read: the limit counts over the whole data set."""
    accepted: Collection[str] = ()
    """Unreadable files that do not count, because a run was tuned without them."""
    unreadable: list[Unreadable] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    """Those of the images that were decoded."""
    brightest: int = 0
    """The largest value of all decoded pixels."""
    headers: Headers = field(default_factory=Headers)
    classes: int = 0
    """How many labels there are, if an image may have several."""

    def __post_init__(self) -> None:
        """Let Pillow open images as large as the limit."""
        allow_pixels(self.options.max_pixels)

    def images(
        self,
        examples: Sequence[Example],
        what: str,
        marks: list[Mark] | None = None,
        margin: Preprocess | None = None,
    ) -> Images:
        """Decode a set, and add a mark of each image to `marks`. `what` names the set in messages.

        `margin` says how the pixels that are kept are read, if not as they are compared.
        """
        pixels, kept = [], []
        how = self.inspection(marks is not None, margin)
        for example, array in self._decoded(examples, what, how, marks):
            pixels.append(array)
            kept.append(example)
        height, width = how.kept.size
        stacked = np.stack(pixels) if pixels else np.empty((0, height, width, 3), dtype=np.uint8)
        return Images(torch.from_numpy(stacked), label_tensor(kept, self.classes), kept)

    def marks(self, examples: Sequence[Example], what: str) -> list[Mark]:
        """Decode a set for its marks alone; the pixels are not kept."""
        marks: list[Mark] = []
        for _ in self._decoded(examples, what, self.inspection(compared=True), marks):
            pass
        return marks

    def inspection(self, compared: bool, margin: Preprocess | None = None) -> Inspection:
        """How this reader reads images; `compared` says whether it takes marks of them."""
        return Inspection(self.preprocess, self.options.max_pixels, compared, margin)

    def note(self, example: Example, finding: Finding, what: str, marks: list[Mark] | None = None) -> bool:
        """Remember what was found in an image, and add a mark of it to `marks`; returns whether it can be read."""
        self.total += 1
        self.headers.add(finding.headers)
        if finding.reason is not None:
            self.unreadable.append(Unreadable(what, example.name, finding.reason))
            return False
        self.digests.append(Digest(what, example.name, finding.sha256.hex()))
        self.brightest = max(self.brightest, finding.brightest)
        if marks is not None and finding.mark is not None:
            marks.append(Mark(example.name, example.label, finding.mark))
        return True

    def _decoded(
        self, examples: Sequence[Example], what: str, how: Inspection, marks: list[Mark] | None
    ) -> Iterator[tuple[Example, Pixels]]:
        for example in tqdm(examples, desc=f"decoding {what}", unit=" images", leave=False, disable=None):
            finding, array = inspect(example, how)
            if self.note(example, finding, what, marks) and array is not None:
                yield example, array

    def finish(self, listing: Path | None = None) -> list[str]:
        """List the unreadable images on stderr, and all of them in the file `listing`; returns a line about them.

        Raises:
            DataError: they are more than the options allow of all images.
        """
        most = self.options.allowed(self.total + self.beside)
        if not self.unreadable:
            if listing is not None:
                listing.unlink(missing_ok=True)
            return []
        for each in self.unreadable[:LISTED]:
            print(f"unreadable {each.set} image {each.file}: {each.reason}", file=sys.stderr)
        if listing is not None:
            write_csv(listing, Unreadable._fields, self.unreadable)
        count = f"{len(self.unreadable)} of {self.total} images are unreadable"
        if sum(each.file not in self.accepted for each in self.unreadable) > most:
            raise DataError(
                f"{count}{f', listed in {listing}' if listing else ''}, and --max-unreadable"
                f" {self.options.max_unreadable} allows {most}: repair or remove them, or raise the limit; first"
                f" {self.unreadable[0].file}: {self.unreadable[0].reason}"
            )
        line = f"{count} and left out{f', see {listing.name}' if listing else ''}"
        print(line, file=sys.stderr)
        return [line]

    def remarks(self) -> list[str]:
        """What else the user should know about the images, one line each.

        Raises:
            DataError: images of 16-bit colour would be almost black.
        """
        found = self.headers.remarks(self.preprocess.decode)
        if self.brightest < DARK and not self.headers.grey and self.total > len(self.unreadable):
            found.append(
                f"warning: no pixel of {self.total - len(self.unreadable)} images is brighter than {self.brightest} of"
                " 255: they look almost black; check how they were saved, and scale them to their own white"
            )
        return found


def decode_all(examples: Sequence[Example], preprocess: Preprocess, what: str) -> Images:
    """Decode a single set.

    Raises:
        DataError: more than 1 % are unreadable, or there are no images.
    """
    reader = Reader(preprocess)
    images = reader.images(examples, what)
    reader.finish()
    return some(images, what)


Some = TypeVar("Some", bound=ImageSet)


def some(images: Some, what: str) -> Some:
    """The images, of which there is at least one.

    Raises:
        DataError: there is none.
    """
    if not len(images):
        raise DataError(f"there are no {what} images")
    return images
