"""Count the images that two sets have in common: the same file, the same pixels, or nearly the same picture.

A model that has seen a test image, or its neighbour in a burst, is measured too well. Images are compared as the task
reads them. Two are nearly the same if few bits of their perceptual hashes differ: fewer than between any usual pair of
images of different classes, so that a set whose images all look alike raises no alarm.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mosa_deploy.bundles.preprocess import Pixels
from training.tasks.labels import Label

NEAR = 8
"""The most of 64 bits that may differ. Re-encoded, resized and brightened copies of photos (UC Merced) mostly differ by
up to 4, and no two different photos, there and in CIFAR-10, by as few as 8."""

APART, MARGIN = 10, 2
"""Percentile of the distances to the nearest image of another class, and how far a copy must stay below it."""

KINDS = ("the same file", "the same pixels", "nearly the same")


class Fingerprint(NamedTuple):
    """What is kept of an image to compare it."""

    content: bytes
    pixels: bytes
    perceptual: int


class Mark(NamedTuple):
    """An image of a set, with its label and its fingerprint."""

    file: str
    label: Label
    print: Fingerprint


class Pair(NamedTuple):
    """An image that repeats one of an earlier set."""

    kind: str
    set: str
    file: str
    label: Label
    first_set: str
    first_file: str
    first_label: Label


@dataclass(frozen=True)
class Duplicates:
    """The images that repeat one of an earlier set, one pair for each."""

    pairs: Sequence[Pair]
    sizes: Mapping[str, int]

    def remarks(self) -> list[str]:
        """One line for each set that has any."""
        found = []
        for name, size in self.sizes.items():
            pairs = [pair for pair in self.pairs if pair.set == name]
            if not pairs:
                continue
            kinds = Counter(pair.kind for pair in pairs)
            text = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
            repeated = {pair.first_set for pair in pairs}
            sets = " or ".join(other for other in self.sizes if other in repeated)
            relabelled = sum(pair.label != pair.first_label for pair in pairs)
            found.append(
                f"{len(pairs)} of {size} {name} images repeat an image of {sets} ({text})"
                + (f", {relabelled} of them under another label" if relabelled else "")
            )
        return found


def fingerprint(content: bytes, pixels: Pixels) -> Fingerprint:
    """The fingerprint of an image: its bytes, and its pixels (H, W, 3) as the task reads them."""
    bits = imagehash.phash(Image.fromarray(pixels)).hash
    return Fingerprint(
        hashlib.sha256(content).digest(),
        hashlib.sha256(pixels.tobytes()).digest(),
        int.from_bytes(np.packbits(bits).tobytes(), "big"),
    )


def find_duplicates(sets: Mapping[str, Sequence[Mark]]) -> Duplicates:
    """The images of each set that repeat one of the sets before it, or one of their own set under another label."""
    pairs: list[Pair] = []
    earlier: list[tuple[str, Mark]] = []
    for name, marks in sets.items():
        found = _repeats(marks, earlier) if earlier and marks else []
        repeating = {mark.file for _, mark, _, _ in found}
        found += [(*pair[:2], name, pair[2]) for pair in _contradictions(marks) if pair[1].file not in repeating]
        for kind, mark, first, other in found:
            pairs.append(Pair(kind, name, mark.file, mark.label, first, other.file, other.label))
        earlier += [(name, mark) for mark in marks]
    return Duplicates(pairs, {name: len(marks) for name, marks in sets.items()})


def _contradictions(marks: Sequence[Mark]) -> list[tuple[str, Mark, Mark]]:
    """The images of a set whose file is there before under another label."""
    first: dict[bytes, Mark] = {}
    found = []
    for mark in marks:
        other = first.setdefault(mark.print.content, mark)
        if other.label != mark.label:
            found.append((KINDS[0], mark, other))
    return found


def _repeats(marks: Sequence[Mark], earlier: Sequence[tuple[str, Mark]]) -> list[tuple[str, Mark, str, Mark]]:
    by_content = {mark.print.content: (name, mark) for name, mark in reversed(earlier)}
    by_pixels = {mark.print.pixels: (name, mark) for name, mark in reversed(earlier)}
    nearest, distances, limit = _nearest(marks, [mark for _, mark in earlier])
    found = []
    for place, mark in enumerate(marks):
        if mark.print.content in by_content:
            found.append((KINDS[0], mark, *by_content[mark.print.content]))
        elif mark.print.pixels in by_pixels:
            found.append((KINDS[1], mark, *by_pixels[mark.print.pixels]))
        elif distances[place] <= limit:
            found.append((KINDS[2], mark, *earlier[nearest[place]]))
    return found


def _nearest(marks: Sequence[Mark], earlier: Sequence[Mark]) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """For each image the place of the nearest earlier one and its distance, and the largest distance of a copy."""
    numbered: dict[Label, int] = {}
    hashes, labels = _arrays(earlier, numbered)
    places, distances, apart = [], [], []
    for given, label in zip(*_arrays(marks, numbered), strict=True):
        differing = np.bitwise_count(hashes ^ given)
        place = int(differing.argmin())
        places.append(place)
        distances.append(int(differing[place]))
        others = differing[labels != label]
        apart += [int(others.min())] if len(others) else []
    limit = min(NEAR, float(np.percentile(apart, APART)) - MARGIN) if apart else NEAR
    return np.array(places), np.array(distances), limit


def _arrays(marks: Sequence[Mark], numbered: dict[Label, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes, and a number for each label; `numbered` holds those that were given so far."""
    hashes = np.array([mark.print.perceptual for mark in marks], dtype=np.uint64)
    labels = [numbered.setdefault(mark.label, len(numbered)) for mark in marks]
    return hashes, np.array(labels, dtype=np.int64)
