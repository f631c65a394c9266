"""Images that belong together, such as photos of one patient or frames of one video, stay in one set."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol, TypeVar

from mosa_deploy.bundles.image_files import Parts
from mosa_deploy.errors import DataError
from training.tasks.labels import Label, numbers

RULES = ("folder", "prefix")
"""The rules that need no table of labels."""


class Grouped(Protocol):
    """A labelled image that may belong to a group."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see Example

    @property
    def label(self) -> Label: ...  # noqa: D102 - see Example

    @property
    def group(self) -> str | None: ...  # noqa: D102 - see Example


G = TypeVar("G", bound=Grouped)

ANY = -1
"""Stands beside the labels of an image that may have several: so the sets keep their sizes, and their shares of images
without labels."""


def drawn_by(example: Grouped) -> tuple[int, ...]:
    """What of an image is to be as frequent in all sets."""
    return numbers(example.label) if isinstance(example.label, int) else (*example.label, ANY)


def by_folder(parts: Parts) -> str | None:
    """The folders between class and file: `cat/p1/2.jpg` -> `p1`, in every class; None if there are none."""
    return "/".join(parts[1:-1]) or None


def by_prefix(parts: Parts) -> str:
    """The file's name up to its first `_`, `-`, `.` or space: `cat/p1_frame2.jpg` -> `p1`, in every class."""
    return re.split(r"[-_. ]", parts[-1].lstrip("-_. "), maxsplit=1)[0]


def members(examples: Sequence[G]) -> list[list[G]]:
    """The images by group, in the order of their first ones. An image without a group is one of its own."""
    found: defaultdict[tuple[str, str], list[G]] = defaultdict(list)
    for example in examples:
        key = ("", example.name) if example.group is None else ("group", example.group)
        found[key].append(example)
    return list(found.values())


def draw_groups(examples: Sequence[G], counts: Mapping[str, int], seed: int) -> dict[str, list[G]]:
    """Draw sets of about the given sizes and about equal class proportions, and keep every group in one set.

    The largest groups are placed first, each in the set that it brings nearest to its size and proportions. Of images
    with several labels those with the rarest come first.

    Raises:
        DataError: there are fewer groups than sets.
    """
    groups = members(examples)
    if len(groups) < len(counts):
        raise DataError(
            f"{len(groups)} groups cannot fill {len(counts)} sets (one is {groups[0][0].group!r}): group the images by"
            " another rule, or by a column of --labels"
        )
    Random(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    total, classes = len(examples), Counter(k for example in examples for k in drawn_by(example))
    if ANY in classes:
        groups.sort(key=lambda group: (-len(group), min(classes[k] for each in group for k in drawn_by(each))))
    missing = {name: {k: n * count / total for k, n in classes.items()} for name, count in counts.items()}
    left = Counter(label for group in groups for label in {k for example in group for k in drawn_by(example)})
    lacking = {label: set(counts) for label in classes}
    drawn: dict[str, list[G]] = {name: [] for name in counts}
    for group in groups:
        labels = Counter(k for example in group for k in drawn_by(example))

        def gain(name: str, labels: Counter[int] = labels) -> float:
            """How much nearer the set comes, in squares relative to its size."""
            before, size = missing[name], max(1, counts[name])
            return sum((before[k] ** 2 - (before[k] - n) ** 2) / size for k, n in labels.items())

        # The last groups of a class go to the sets that have none of it; of a rare label the first set has one first.
        scarce = {k: [name for name in counts if name in lacking[k]] for k in labels if left[k] <= len(lacking[k])}
        if ANY in classes:
            scarce = {k: lack[:1] if left[k] < len(lack) else lack for k, lack in scarce.items()}
        urgent = {name for lack in scarce.values() for name in lack}
        best = max([name for name in counts if name in urgent] or counts, key=gain)
        drawn[best] += group
        for k, n in labels.items():
            missing[best][k] -= n
            left[k] -= 1
            lacking[k].discard(best)
    return drawn


def check_apart(sets: Mapping[str, Sequence[Grouped]]) -> None:
    """Check that no group lies in two sets which the data came with.

    Raises:
        DataError: one does.
    """
    seen: dict[str, str] = {}
    for name, examples in sets.items():
        for example in examples:
            if example.group is not None and seen.setdefault(example.group, name) != name:
                pair = f"{seen[example.group]} and in {name}"
                raise DataError(
                    f"group {example.group!r} is in {pair}: move its images into one set, or group otherwise"
                )
