"""Labels from a table: which image has which class, and perhaps which set and which group.

    file,label,split,group
    photos/1.jpg,oak,train,garden-3

With --multi-label, the label may be several, see `training.tasks.label_columns`.

Files may be named relative to --data-dir or to the table, without their folders or their suffix where that is clear.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from mosa_deploy.bundles.image_files import Parts
from mosa_deploy.errors import DataError
from mosa_deploy.utils.label_cells import EMPTY
from mosa_deploy.utils.set_names import read_set_name
from training.tasks.base import Example
from training.tasks.classes import WHOLE, Labelled, check_names, check_same
from training.tasks.columns import Columns, class_names, find_columns
from training.tasks.groups import by_prefix
from training.tasks.label_columns import check_known, read_labels
from training.tasks.labels import numbers
from training.tasks.source import Source, shown
from training.tasks.tables import WANTED, Table, read_table


class Entry(NamedTuple):
    """One row: an image, as the table says."""

    where: str
    file: str
    label: str | tuple[str, ...]
    """Its class, or its labels where there may be several."""
    split: str
    group: str | None


class Index:
    """Finds images by what a table calls them."""

    def __init__(self, images: Iterable[Parts]) -> None:
        self.images = frozenset(images)
        self._tails: defaultdict[Parts, list[Parts]] = defaultdict(list)
        for parts in sorted(self.images):
            stem = (*parts[:-1], Path(parts[-1]).stem)
            for path in {_key(parts), _key(stem)}:
                for start in range(len(path)):
                    self._tails[path[start:]].append(parts)

    def find(self, text: str, base: Parts) -> list[Parts]:
        """The images that `text` may name; `base` is the folder of the table. One is the rule.

        A path is taken from `base` or the top, then as the end of an image's path, then an image's path as its end.
        """
        asked = _parts(text)
        for path in ((*base, *asked), asked):
            if path in self.images:
                return [path]
        for start in range(len(asked)):
            found = self._tails.get(_key(asked[start:]), [])
            if start:
                found = [parts for parts in found if len(parts) == len(asked) - start]
            if found:
                return found
        return []


def _key(parts: Parts) -> Parts:
    return tuple(normalize("NFC", part).casefold() for part in parts)


def _parts(text: str) -> Parts:
    path = posixpath.normpath(text.replace("\\", "/"))
    return tuple(part for part in path.split("/") if part not in ("", ".", ".."))


def read_manifest(
    source: Source, paths: Sequence[Path], group: str | None, multi_label: bool = False, least: int = 2
) -> Labelled:
    """Read the tables of --labels. `group` is the value of --group.

    With `multi_label` an image may have several labels or none, and all rows that name it count.

    Raises:
        DataError: a table is damaged, lacks a column, names files that are missing, or an image twice with different
            labels; or the sets have different classes.
    """
    entries: list[Entry] = []
    remarks: list[str] = []
    index = Index(source.images)
    images: dict[Parts, Entry] = {}
    doubled = 0
    for path in paths:
        table, columns = find_columns(read_table(path), group, multi_label)
        if not table.rows:
            raise DataError(f"--labels {path} has a header and no rows: {WANTED}")
        entries = read_entries(table, columns, len(paths) > 1, multi_label)
        remarks.append(f"{path}: {columns.describe(table.columns)}")
        found = locate(source, index, table, entries)
        for parts, entry in zip(found, entries, strict=True):
            doubled += _note(images, parts, entry)
    if doubled:
        remarks.append(f"{doubled:,} rows name an image that an earlier row names alike: each image is used once")
    unlisted = index.images - images.keys()
    names = " and ".join(path.name for path in paths)
    if unlisted:
        first = shown(min(unlisted))
        remarks.append(
            f"left out: {len(unlisted):,} image(s) of {source.name} that {names} does not list, such as {first!r}"
        )
    return _labelled(source, images, names, group, remarks, 0 if multi_label else least)


def read_entries(table: Table, columns: Columns, several: bool, multi_label: bool = False) -> list[Entry]:
    """The rows of a table. With several tables, a table without a column of sets is the set of its name.

    Raises:
        DataError: a row has no file, no label or no set.
    """
    whole = WHOLE
    if several and columns.split is None:
        name = read_set_name(table.path.stem) or read_set_name(table.path.parent.name)
        if name is None:
            raise DataError(f"--labels {table.path}: add a column `split`, or name each file after its set: train.csv")
        whole = name.name
    entries, labels = list[Entry](), list[str | tuple[str, ...]]()
    labels += read_labels(table, columns.labels) if multi_label else class_names(table, columns.label)
    for (line, row), label in zip(table.rows, labels, strict=True):
        where, file = table.where(line), row.get(columns.file, "")
        if not file:
            raise DataError(f"--labels {where} has no {columns.file!r}: fill it in, or remove the row")
        split = whole
        if columns.split is not None:
            said = row.get(columns.split, "")
            named = read_set_name(said)
            if named is None:
                raise DataError(
                    f"--labels {where}: {columns.split} {said!r} is no set: write train, validation or test"
                )
            split = named.name
        group = row.get(columns.group, "") if columns.group is not None else ""
        entries.append(Entry(where, file, label, split, None if group.lower() in EMPTY else group))
    return entries


def locate(source: Source, index: Index, table: Table, entries: Sequence[Entry]) -> list[Parts]:
    """The image of each row.

    Raises:
        DataError: a file is missing, or a name fits several.
    """
    base = _base(Path(source.name), table.path.parent)
    found: list[Parts] = []
    missing: list[Entry] = []
    for entry in entries:
        fits = index.find(entry.file, base)
        if len(fits) > 1:
            fits = [parts for parts in fits if entry.split in map(_set_name, parts[:-1])] or fits
        if len(fits) > 1:
            pair = " and ".join(repr(shown(parts)) for parts in fits[:2])
            raise DataError(f"--labels {entry.where}: {entry.file!r} may be {pair}: write the path")
        if not fits:
            missing.append(entry)
        found += fits
    if missing:
        first = missing[0]
        others = Index(source.others).find(first.file, base)
        kind = f" (a file that is not read: {source.left_out()})" if others else ""
        raise DataError(
            f"--labels {table.path} names {len(missing)} of {len(entries)} files that are not in {source.name}, first"
            f" {first.file!r} in line {first.where.rpartition(':')[2]}{kind}: add them, or remove the rows"
        )
    return found


def _set_name(text: str) -> str | None:
    found = read_set_name(text)
    return found.name if found else None


def _base(root: Path, folder: Path) -> Parts:
    """The folder of a table, seen from the images; the top if it lies elsewhere."""
    root, folder = root.absolute(), folder.absolute()
    return folder.relative_to(root).parts if folder.is_relative_to(root) else ()


def _note(images: dict[Parts, Entry], parts: Parts, entry: Entry) -> bool:
    """Note an image; returns whether an earlier row says the same of it.

    Raises:
        DataError: an earlier row says something else.
    """
    before = images.get(parts)
    if before is None:
        images[parts] = entry
        return False
    known = before.label
    if isinstance(known, tuple) and isinstance(entry.label, tuple):
        both = tuple(dict.fromkeys((*known, *entry.label)))
        before, entry = before._replace(label=both), entry._replace(label=both)
        images[parts] = before
    for what in ("label", "split", "group"):
        one, other = getattr(before, what), getattr(entry, what)
        if one != other:
            hint = ", or add --multi-label if an image may have several labels" if what == "label" else ""
            raise DataError(
                f"--labels {entry.where}: {entry.file!r} has {what} {other!r}, and {one!r} in"
                f" {before.where}: keep one{hint}"
            )
    return before.label == known


def _labelled(
    source: Source, images: dict[Parts, Entry], names: str, group: str | None, remarks: list[str], least: int
) -> Labelled:
    """Sort the images into sets, in the order of their paths."""
    multi_label = any(isinstance(entry.label, tuple) for entry in images.values())
    classes = _sorted({name for entry in images.values() for name in _named(entry)})
    check_names(classes, names)
    if len(classes) < least:
        raise DataError(f"--labels {names} names {len(classes)} class(es): a task needs at least two")
    labels = {name: label for label, name in enumerate(classes)}
    sets: dict[str, list[Example]] = {}
    for parts, entry in sorted(images.items()):
        grouped = entry.group
        if group == "folder":
            grouped = "/".join(parts[:-1]) or None
        elif group == "prefix":
            grouped = by_prefix(parts)
        own = tuple(sorted(labels[name] for name in _named(entry)))
        example = Example(shown(parts), source.images[parts], own if multi_label else own[0], grouped)
        sets.setdefault(entry.split, []).append(example)
    present = {
        name: {classes[k] for example in examples for k in numbers(example.label)} for name, examples in sets.items()
    }
    if multi_label:
        check_known(present, names)
        bare = sum(not _named(entry) for entry in images.values())
        remarks += [f"{bare:,} of {len(images):,} images have no label"] if bare else []
    else:
        remarks += _elsewhere(images, classes)
        check_same(present, {name: f"{name} of {names}" for name in sets})
    order = [name for name in (WHOLE, "train", "validation", "test") if name in sets]
    return Labelled(classes, {name: sets[name] for name in order}, remarks, f"as {names} says")


def _named(entry: Entry) -> tuple[str, ...]:
    return (entry.label,) if isinstance(entry.label, str) else entry.label


def _elsewhere(images: dict[Parts, Entry], classes: Sequence[str]) -> list[str]:
    """A line if images lie in the folder of another class than the table says, else none."""
    named = {_key((name,)): name for name in classes}
    odd = []
    for parts, entry in sorted(images.items()):
        folders = [named[_key((part,))] for part in parts[:-1] if _key((part,)) in named]
        if folders and folders[-1] != entry.label:
            odd.append(f"{shown(parts)!r} is {entry.label!r} in {entry.where}")
    if not odd:
        return []
    return [
        f"warning: {len(odd):,} image(s) lie in the folder of another class than the table says, which is taken:"
        f" {odd[0]}"
    ]


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order, numbers in theirs."""
    known = list(names)
    return tuple(sorted(known, key=int) if all(name.isdecimal() for name in known) else sorted(known))
