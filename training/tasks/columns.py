"""Which columns of a table hold the file, its label, its set and its group, by the names that people give them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from mosa_deploy.bundles.image_files import image_suffixes
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.label_cells import EMPTY
from training.tasks.groups import RULES
from training.tasks.label_columns import choose_columns
from training.tasks.tables import Row, Table

FILE = (
    *("file", "filename", "filepath", "path", "image", "imagepath", "imagefile", "imagename", "imagefilename"),
    *("img", "imgpath", "imgfile", "imgname", "photo", "picture", "relativepath", "relpath", "fname"),
    *("files", "filenames", "filepaths", "paths", "images", "imageid", "imgid", "idcode", "id", "name"),
)
LABEL = (
    *("label", "class", "category", "target", "classname", "classlabel", "labelname", "categoryname", "y", "tag"),
    *("labels", "classes", "categories", "targets", "tags"),
)
SPLIT = ("split", "set", "subset", "partition", "dataset", "datasplit", "splits", "usage", "phase")
GROUP = ("group", "groupid", "groups")
"""Names of columns, in lower case and without anything between words; earlier ones come first."""

SERIES = tuple(
    f"{of}{suffix}"
    for of in ("patient", "subject", "person", "video", "series", "sequence", "scene", "session", "lesion", "animal")
    for suffix in ("", "id", "name")
)
"""Columns that probably say which images belong together; it is the user who decides."""

SET_LIKE = (
    *("istrain", "istest", "isval", "isvalid", "istraining", "istrainingimage", "istestimage", "fold", "kfold"),
    *("train", "test", "val"),
)
"""Columns that probably say which set an image belongs to, in words that are not read."""

NO_LABEL = {"", "index", "width", "height", "text", "caption", "description", "url", "md5", "sha256", "bbox", "objects"}
"""Columns that are never taken for the label only because no other is there."""

ONE_LABEL = "give a column with one class per image"

SEVERAL = f"add --multi-label if an image may have several labels, or {ONE_LABEL}"

QUANTITIES = (
    *(
        "age",
        "price",
        "cost",
        "weight",
        "height",
        "length",
        "area",
        "size",
        "count",
        "number",
        "year",
        "score",
        "rating",
    ),
    *("temperature", "distance", "depth", "angle", "speed", "value", "percent", "percentage", "amount"),
)
"""Names of columns whose whole numbers are no classes if there are many."""

MANY_CLASSES = 10
"""With more classes than this, and fewer than two images per class, a column is no class."""

NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+\."


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by what they hold."""

    file: str
    label: str
    split: str | None
    group: str | None
    others: tuple[str, ...] = ()
    """Further columns that say of one label each which images have it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns of labels."""
        return (self.label, *self.others)

    def describe(self, columns: Sequence[str]) -> str:
        """What each of a table's columns was taken for, and which are not used."""
        taken = {name: column for name, column in vars(self).items() if isinstance(column, str)}
        unused = [column for column in columns if column and column not in {*taken.values(), *self.others}]
        text = ", ".join(f"{name} from {column!r}" for name, column in taken.items())
        text += f", and {len(self.others)} more columns of 0 and 1, one for each label" if self.others else ""
        text += f"; not used: {', '.join(map(repr, unused[:MANY_CLASSES]))}" if unused else ""
        known = None if self.group else next((column for column in unused if _plain(column) in SERIES), None)
        sets = None if self.split else next((column for column in unused if _plain(column) in SET_LIKE), None)
        text += f"; --group {known} would keep the images of one {known} in one set" if known else ""
        hint = f"; if {sets!r} says the set, write train, validation and test into a column `split`"
        return text + (hint if sets else "")


def find_columns(table: Table, group: str | None, multi_label: bool = False) -> tuple[Table, Columns]:
    """The table, with a header if it had none, and its columns.

    `group` is the value of --group, and `multi_label` says whether an image may have several labels.

    Raises:
        ConfigError: --group names no column.
        DataError: there is no column of files or of labels, or several could be the labels.
    """
    if not any(_plain(name) in FILE for name in table.columns):
        table = _with_header(table)
    files = _named(table, FILE)
    if not files:
        raise DataError(f"--labels {table.path} has no column of files: {_listed(table)}: name one `file`")
    file = next((column for column in files if _holds_images(table.rows, column)), files[0])
    split = next(iter(_named(table, SPLIT)), None)
    grouped = next(iter(_named(table, GROUP)), None)
    if group is not None and group not in RULES:
        grouped = next((column for column in table.columns if _plain(column) == _plain(group)), None)
        if grouped is None:
            raise ConfigError(f"--group {group}: {table.path} has no such column; {_listed(table)}")
    taken = {file, split or file, grouped or file}
    label, *others = choose_columns(table, *_candidates(table, taken)) if multi_label else (_label(table, taken),)
    return table, Columns(file, label, split, None if group in RULES else grouped, tuple(others))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _named(table: Table, names: Sequence[str]) -> list[str]:
    """The columns of these names, in the order of the names."""
    return [column for name in names for column in table.columns if _plain(column) == name]


def _listed(table: Table) -> str:
    return f"its columns are {', '.join(map(repr, table.columns))}"


def _is_image(text: str) -> bool:
    return PurePosixPath(text.replace("\\", "/")).suffix.lower() in image_suffixes()


def _holds_images(rows: Sequence[tuple[int, Row]], column: str) -> bool:
    return bool(rows) and _is_image(rows[0][1].get(column, ""))


def _with_header(table: Table) -> Table:
    """A table without a header gets one: the first line is a row if it names an image."""
    if len(table.columns) not in (2, 3) or not _is_image(table.columns[0]):
        return table
    names = ("file", "label", "split")[: len(table.columns)]
    first = 1, dict(zip(names, table.columns, strict=True))
    rows = [(line, dict(zip(names, row.values(), strict=True))) for line, row in table.rows]
    return replace(table, columns=names, rows=(first, *rows))


def _candidates(table: Table, taken: set[str]) -> tuple[list[str], list[str]]:
    """The columns that are called like labels, and all that may hold them."""
    found = [column for column in _named(table, LABEL) if column not in taken]
    return found, [column for column in table.columns if column not in taken and _plain(column) not in NO_LABEL]


def _label(table: Table, taken: set[str]) -> str:
    """The column of the labels.

    Raises:
        DataError: there is none, or several could be it.
    """
    found, free = _candidates(table, taken)
    if not found and len(free) == 1:
        return free[0]
    if not found:
        if len(free) > 1 and all(
            row.get(column) in ("0", "1", "0.0", "1.0") for _, row in table.rows for column in free
        ):
            shown = ", ".join(map(repr, free[:3]))
            raise DataError(f"--labels {table.path}: columns {shown} hold 0 and 1, one for each class: {SEVERAL}")
        raise DataError(f"--labels {table.path} has no column of labels: {_listed(table)}: name one `label`")
    first, *others = found
    for other in others:
        if not _one_to_one(table, first, other):
            raise DataError(f"--labels {table.path}: {first!r} and {other!r} both could be the label: rename one")
    words = [column for column in found if not all(map(str.isdigit, _values(table, column)))]
    return (words or found)[0]


def _values(table: Table, column: str) -> list[str]:
    return [row.get(column, "") for _, row in table.rows]


def _one_to_one(table: Table, one: str, other: str) -> bool:
    pairs = set(zip(_values(table, one), _values(table, other), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def class_names(table: Table, column: str) -> list[str]:
    """The class of each row. Whole numbers that were saved as 1.0 become 1.

    Raises:
        DataError: a row has no label or several, or the column holds quantities and not classes.
    """
    values = _values(table, column)
    empty = [line for (line, _), value in zip(table.rows, values, strict=True) if value.lower() in EMPTY]
    if empty:
        some = f"{len(empty)} rows have no {column!r}, the first in line {empty[0]}"
        raise DataError(f"--labels {table.path}: {some}: fill them in, or remove them")
    several = _several(values)
    if several:
        fault = f"--labels {table.path}: column {column!r} names several classes per image, such as {several!r}"
        raise DataError(f"{fault}: {SEVERAL}")
    distinct = sorted(set(values))
    if all(re.fullmatch(NUMBER, value) for value in distinct):
        many = _plain(column) in QUANTITIES and len(distinct) > MANY_CLASSES
        broken = next((value for value in distinct if float(value) % 1 or many), None)
        if broken:
            fault = f"--labels {table.path}: column {column!r} holds quantities, such as {broken}"
            raise DataError(f"{fault}: regression cannot be tuned: {ONE_LABEL}")
        values = [value if value.isdecimal() else f"{float(value):.0f}" for value in values]
    if len(set(values)) > max(MANY_CLASSES, len(values) / 2):
        fault = f"--labels {table.path}: column {column!r} holds {len(set(values))} values in {len(values)} rows"
        raise DataError(f"{fault}, so it is no class: {ONE_LABEL}")
    return values


def _several(values: Sequence[str]) -> str | None:
    """A value that names several classes, or none; None if there is no such value."""
    known = set(values)
    used = Counter(part for value in known for part in _parts(value, ";,"))
    for value in sorted(known):
        listed, joined = _parts(value, ";,"), _parts(value, ";,/+ ")
        if (
            value.startswith(("[", "{"))
            or "|" in value
            or (len(listed) > 1 and (known & {*listed} or all(used[part] > 1 for part in listed)))
            or (len(joined) > 1 and known >= {*joined})
        ):
            return value
    return None


def _parts(value: str, separators: str) -> list[str]:
    return [part.strip() for part in re.split(f"[{separators}]", value) if part.strip()]
