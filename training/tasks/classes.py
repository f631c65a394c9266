"""Class folders: their names, their images, and what is wrong with them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from unicodedata import normalize

from mosa_deploy.bundles.class_match import fold_name
from mosa_deploy.bundles.image_files import Parts
from mosa_deploy.errors import DataError
from mosa_deploy.utils.set_names import says_nothing, set_of
from training.tasks.archives import TABLES
from training.tasks.base import Example
from training.tasks.sets import beside_sets, set_folders, set_source
from training.tasks.source import Source, shown

Grouping = Callable[[Parts], str | None]
"""The group of an image, from its path below the sets; None if it has none."""

WHOLE = "whole"
"""Stands for the name of a set where the images have yet to be split."""


MARKS = re.compile(
    r"annotations?|labels?|(seg(mentation)?)?_?(masks?|annotations?)|segmentations?|segmentation(class|object)"
    r"|bbox(es)?|bounding_?boxes|ground_?truths?|gt|xmls?"
)
"""Folders of what others have drawn over the images beside them."""


class Labelled(NamedTuple):
    """Labelled images, by set if they came in sets."""

    classes: tuple[str, ...]
    sets: dict[str, list[Example]]
    remarks: list[str]
    """What the user should know, one line each."""
    origin: str = "as the folders say"
    """Who says which image is in which set."""


def read_classes(
    source: Source, grouping: Grouping | None = None, least: int = 2
) -> tuple[tuple[str, ...], list[Example]]:
    """Read `<class>/<file>`: the sorted class names, and the images sorted by path.

    With `grouping`, images may lie deeper: `<class>/<group>/<file>`.

    Raises:
        DataError: there are fewer than `least` classes, names that differ only by case, a class without images, or
            images at another level.
    """
    classes = tuple(source.tops())
    if not classes and source.images:
        raise DataError(
            f"{source.name} holds {len(source.loose())} images and no class folder: put each class into a folder of its"
            " name, or name a table of files and classes with --labels"
        )
    if len(classes) < least:
        tables = sorted(shown(parts) for parts, kind in source.others.items() if kind in TABLES)
        hint = f"; if {tables[0]} names the classes, give it with --labels" if tables else ""
        needed = "a task needs at least two" if least > 1 else "one per class is needed"
        raise DataError(f"{source.name} holds {len(classes)} class folder(s): {needed}{hint}")
    check_names(classes, source.name)
    _check_parts(classes, source.name)
    deep = sorted(parts for parts in source.images if len(parts) > 2)
    if deep and all(set_of(parts[1]) for parts in deep):
        raise DataError(
            f"{source.name} holds {shown(deep[0])!r}, a set inside a class: put the classes into the sets, as in"
            f" {shown((deep[0][1], deep[0][0]))!r}"
        )
    if deep and grouping is None:
        raise DataError(f"{source.name} holds {shown(deep[0])!r}, {_too_deep(source, deep)}")
    counts = Counter(parts[0] for parts in source.images if len(parts) > 1)
    empty = [name for name in classes if not counts[name]]
    if empty:
        line = source.below(empty[0]).left_out()
        where = f"{source.name} is empty{f' ({line})' if line else ''}"
        raise DataError(f"class {empty[0]!r} in {where}: add images or remove the folder")
    labels = {name: label for label, name in enumerate(classes)}
    images = sorted((parts, read) for parts, read in source.images.items() if len(parts) > 1)
    return classes, [
        Example(shown(parts), read, labels[parts[0]], grouping(parts) if grouping else None) for parts, read in images
    ]


def _check_parts(classes: Sequence[str], where: str) -> None:
    """Raises DataError if the folders are no classes, but what a data set for detection or segmentation consists of."""
    pictures = [name for name in classes if says_nothing(name) or name.lower() == "jpegimages"]
    marks = [name for name in classes if MARKS.fullmatch(name.lower())]
    if pictures and marks:
        raise DataError(
            f"{where} holds {pictures[0]!r} beside {marks[0]!r}, as data sets for detection or segmentation do: put the"
            " images into one folder per class, or name each image's class in a table with --labels"
        )


def _too_deep(source: Source, deep: Sequence[Parts]) -> str:
    """What to do about images below the folders of a class; moving them up could mix sets."""
    tops = {parts[0] for parts in deep}
    below = [{parts[1] for parts in deep if parts[0] == top} for top in sorted(tops)]
    if len(tops) > 1 and set.intersection(*below):
        return (
            f"deeper than <class>/<file>: if {' and '.join(map(repr, sorted(tops)[:3]))} are sets, name them train,"
            " validation and test; if they are classes, keep their inner folders together with --group folder"
        )
    return (
        "deeper than <class>/<file>: if it belongs to the class of its top folder, give --group folder, which keeps the"
        " images of an inner folder in one set; if the inner folders are classes, move them to the top"
    )


def outside(source: Source) -> str | None:
    """The remark about images that lie beside the class folders."""
    loose = source.loose()
    if not loose:
        return None
    return (
        f"left out: {len(loose):,} image(s) of {source.name} outside any class folder, such as {shown((loose[0],))!r}"
    )


def read_labelled_sets(source: Source, grouping: Grouping | None = None, least: int = 2) -> Labelled:
    """Read `<class>/<file>` below the folders of the sets, or below the source itself if it has none.

    Images in a test folder without class folders have no labels and are left out.

    Raises:
        DataError: train is missing, the sets have different classes, or `read_classes` finds a fault.
    """
    folders = set_folders(source)
    if not folders:
        classes, examples = read_classes(source, grouping, least)
        return Labelled(classes, {WHOLE: examples}, _known(outside(source)))
    sets = {name: set_source(source, top) for name, top in folders.items()}
    remarks = [*_known(beside_sets(source, folders))]
    if "train" in sets and "test" in sets and not sets["test"].tops():
        unlabelled = sets.pop("test")
        count = f"left out: {len(unlabelled.images):,} image(s) of {unlabelled.name}"
        remarks.append(f"{count}, which has no class folders" if unlabelled.images else f"{unlabelled.name} is empty")
    read = {name: read_classes(inside, grouping, least) for name, inside in sets.items()}
    check_same({name: classes for name, (classes, _) in read.items()}, {name: sets[name].name for name in sets})
    for inside in sets.values():
        remarks += _known(outside(inside))
    return Labelled(next(iter(read.values()))[0], {name: examples for name, (_, examples) in read.items()}, remarks)


def _known(*remarks: str | None) -> list[str]:
    return [remark for remark in remarks if remark]


def check_same(read: Mapping[str, Iterable[str]], where: Mapping[str, str]) -> None:
    """Check that all sets have the same classes. `where` gives each set's name in errors.

    Raises:
        DataError: a class is missing in a set.
    """
    first, *others = read
    for name in others:
        odd = sorted({*read[name]} ^ {*read[first]})
        if odd:
            fault = f"{where[name]} has other classes than {where[first]}"
            raise DataError(f"{fault} ({odd[0]!r} is in one of them alone): make them the same")


def check_names(classes: Sequence[str], where: str) -> None:
    """Check that names are UTF-8, and that they differ by more than case, spaces, leading zeros or Unicode form.

    Raises:
        DataError: a name is not, or two do not.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if shown((name,)) != name:
            raise DataError(f"class {shown((name,))} in {where} has a name that is not UTF-8: rename it")
        key = fold_name(name)
        other = seen.setdefault(str(int(key)) if key.isdecimal() else key, name)
        if other != name:
            pair = f"{other!r} and {name!r}" if normalize("NFC", other) != normalize("NFC", name) else ""
            pair = pair or f"{other!a} and {name!a}"
            raise DataError(
                f"classes {pair} in {where} differ by case, spaces, leading zeros or Unicode form alone: rename or"
                " join them"
            )
