"""Decode one image and note what is odd about it. Worker processes do this too: nothing here loads torch."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from mosa_deploy.bundles.preprocess import Pixels, Preprocess, read_each
from mosa_deploy.errors import DataError
from training.duplicates import Fingerprint, fingerprint
from training.headers import Headers
from training.tasks.base import Example


@dataclass(frozen=True)
class Inspection:
    """How images are read."""

    preprocess: Preprocess
    max_pixels: int
    """An image with more counts as unreadable."""
    compared: bool
    """Whether fingerprints are wanted, to find images that two sets have in common."""
    margin: Preprocess | None = None
    """How the pixels that are kept are read, if not as they are compared: see `training.augment`."""

    @property
    def kept(self) -> Preprocess:
        """How the pixels that are kept are read."""
        return self.margin or self.preprocess


class Finding(NamedTuple):
    """What is known of an image."""

    headers: Headers
    reason: str | None = None
    """Why it cannot be read; None if it can."""
    sha256: bytes = b""
    """The digest of its file, if it can be read."""
    brightest: int = 0
    mark: Fingerprint | None = None
    """Only if it was asked for, and the image can be read."""


def inspect(example: Example, how: Inspection) -> tuple[Finding, Pixels | None]:
    """What is known of an image, and its pixels (H, W, 3) if it can be read."""
    headers = Headers()
    try:
        content = example.read()
        headers.look(content, example.name, how.preprocess, how.max_pixels)
        pixels, *larger = read_each(content, [how.preprocess] if how.margin is None else [how.preprocess, how.margin])
    except (DataError, OSError) as error:
        return Finding(headers, getattr(error, "strerror", None) or str(error)), None
    mark = fingerprint(content, pixels) if how.compared else None
    digest = mark.content if mark else hashlib.sha256(content).digest()
    return Finding(headers, None, digest, int(pixels.max()), mark), larger[0] if larger else pixels
