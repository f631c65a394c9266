"""The classes of labelled images and those of a task are matched by name, never by their place alone."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

from mosa_deploy.errors import DataError, listed

NUMBERED = re.compile(r"(?:class|label)?[ _-]?([0-9]+)", re.IGNORECASE)
"""A name that says no more than a number, such as `class0` of a converted checkpoint or `LABEL_0` of transformers."""


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of images fit those of a task."""

    places: tuple[int, ...]
    """For each class of the images, its place among the task's classes."""
    notes: tuple[str, ...] = ()
    """What differs although the classes match, one line each."""


def match_classes(learned: Sequence[str], given: Sequence[str], where: str, some: bool = False) -> ClassMatch:
    """Match the classes of the images in `where` with those that a task has learned.

    Names are equal if they differ by case, spaces or Unicode form alone. A task that only knows numbers, such as
    `class0`, takes other names in their sorted order, which a note says. With `some`, the images need not have all
    classes: several labels per image may lack the rare ones.

    Raises:
        DataError: a class is missing or unknown; names all of them.
    """
    places = {name: place for place, name in enumerate(learned)}
    folded = _folded(learned)
    found = [places.get(name, folded.get(fold_name(name))) for name in given]
    if None in found and (numbered := _by_number(learned, given)) is not None:
        return numbered
    known = [place for place in found if place is not None]
    if len(known) < len(found) or len(set(known)) < max(len(known), 0 if some else len(learned)):
        raise DataError(_fault(learned, given, found, where))
    notes = []
    pairs = [(name, learned[place]) for name, place in zip(given, known, strict=True)]
    other = [f"{name!a} for {own!a}" for name, own in pairs if name != own]
    if other:
        notes.append(f"class names of {where} differ by case, spaces or Unicode form: {listed(other)}")
    if known != sorted(known):
        notes.append(f"the classes of {where} are in another order than the task's; they are matched by name")
    return ClassMatch(tuple(known), tuple(notes))


def fold_name(name: str) -> str:
    """A class name without what people do not see, or do not mean: case, Unicode form and superfluous spaces."""
    return normalize("NFC", " ".join(normalize("NFC", name).casefold().split()))


def _folded(names: Sequence[str]) -> dict[str, int]:
    """Folded name -> place, for the names that stay unique."""
    folded = [fold_name(name) for name in names]
    return {name: place for place, name in enumerate(folded) if folded.count(name) == 1}


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The numbers that the names say and nothing else; None if one of them says more."""
    found = [NUMBERED.fullmatch(name) for name in names]
    return [int(match[1]) for match in found if match] if all(found) else None


def _by_number(learned: Sequence[str], given: Sequence[str]) -> ClassMatch | None:
    """The match with a task that only knows numbers; None if it knows names, or another number of classes."""
    own, theirs = _numbers(learned), _numbers(given)
    if own is None or len(own) != len(given) or not any(name.strip("0123456789") for name in learned):
        return None
    if theirs is not None and sorted(theirs) == sorted(own):
        places = tuple(own.index(number) for number in theirs)
    else:
        places = tuple(range(len(given)))
    pairs = listed([f"{learned[place]} is {name!r}" for place, name in zip(places, given, strict=True)])
    return ClassMatch(
        places, (f"the task knows its classes by number only, so their order cannot be checked; taken: {pairs}",)
    )


def _fault(learned: Sequence[str], given: Sequence[str], found: Sequence[int | None], where: str) -> str:
    if _numbers(learned) is not None and len(learned) != len(given):
        return f"{where} has {len(given)} classes ({listed(given)}), the task has {len(learned)} ({listed(learned)})"
    missing = [name for place, name in enumerate(learned) if place not in found]
    extra = [name for name, place in zip(given, found, strict=True) if place is None]
    twice = [name for name, place in zip(given, found, strict=True) if place is not None and found.count(place) > 1]
    faults = [
        f"{text} {listed([repr(name) for name in names])}"
        for text, names in (
            ("lacks the task's class", missing),
            ("has a class that the task does not know:", extra),
            ("has one class twice:", twice),
        )
        if names
    ]
    near = [(name, close[0]) for name in extra if (close := difflib.get_close_matches(name, missing, n=1))]
    same = "give images of the same classes, in folders of their names"
    hint = f"rename {near[0][0]!r} to {near[0][1]!r}" if near else same
    return f"{where} {' and '.join(faults)}; {hint}"
