"""Several labels per image in a table: in one column, in one column for each label, or in one row for each.

    file,labels          file,cat,dog        file,label
    1.jpg,cat|dog        1.jpg,1,1           1.jpg,cat
    2.jpg,               2.jpg,0,0           1.jpg,dog

An empty cell is an image without labels.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from mosa_deploy.errors import DataError
from mosa_deploy.utils.label_cells import SEPARATORS, separator_of, split_labels
from training.tasks.tables import Table

YES, NO = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")
"""What the cells of a column for one label hold, in lower case."""

WHOLE_NUMBER = r"[0-9]+(\.0)?"

VECTOR = r"\[ *[01](, *[01])+ *\]"
"""A list that says of every label whether an image has it, but not what it is called."""

Labels = tuple[str, ...]

WAY = (
    f"name several labels in a column `labels`, with one of {' '.join(SEPARATORS)} between them, or give one column of"
    " 0 and 1 for each label"
)


def choose_columns(table: Table, named: Sequence[str], free: Sequence[str]) -> Labels:
    """The column of the labels, or the columns of 0 and 1; `named` are called so, `free` may hold them too.

    Raises:
        DataError: there are none.
    """
    marks = [column for column in free if _is_marks(table, column)]
    first = next((column for column in named if column not in marks), None)
    if first is not None or (named and len(marks) == 1):
        return (first or named[0],)
    if marks:
        return tuple(marks)
    if len(free) == 1:
        return (free[0],)
    columns = ", ".join(map(repr, table.columns))
    raise DataError(f"--labels {table.path} has no column of labels: its columns are {columns}: {WAY}")


def _is_marks(table: Table, column: str) -> bool:
    """Whether a column says of one label which images have it."""
    values = {row.get(column, "").lower() for _, row in table.rows}
    return values <= {*YES, *NO} and not values.isdisjoint(YES)


def read_labels(table: Table, columns: Sequence[str]) -> list[Labels]:
    """The labels of each row, in one column or in one column for each.

    Raises:
        DataError: a cell cannot be read, no row has a label, or nearly every row has one of its own.
    """
    if len(columns) > 1:
        return [tuple(each for each in columns if row.get(each, "").lower() in YES) for _, row in table.rows]
    (column,) = columns
    cells = [row.get(column, "") for _, row in table.rows]
    separator = separator_of(cells)
    if all(re.fullmatch(VECTOR, cell) for cell in cells):
        raise DataError(f"--labels {table.path}: column {column!r} holds lists of 0 and 1, such as {cells[0]}: {WAY}")
    found: list[Labels] = []
    for (line, _), cell in zip(table.rows, cells, strict=True):
        try:
            found.append(split_labels(cell, separator))
        except ValueError as error:
            raise DataError(f"--labels {table.where(line)}: {column} {cell[:40]!r}: {error}: {WAY}") from None
    return _checked(table, column, found)


def _checked(table: Table, column: str, found: list[Labels]) -> list[Labels]:
    known = {label for labels in found for label in labels}
    if not known:
        raise DataError(f"--labels {table.path}: no row has a label in {column!r}: {WAY}")
    if len(known) > max(10, sum(map(len, found)) / 2):
        fault = f"--labels {table.path}: column {column!r} holds {len(known)} labels in {len(found)} rows"
        raise DataError(f"{fault}, so they are no classes: {WAY}")
    if all(re.fullmatch(WHOLE_NUMBER, label) for label in known):  # Spreadsheets save 1 as 1.0.
        return [tuple(dict.fromkeys(label.partition(".")[0] for label in labels)) for labels in found]
    return found


def check_known(present: Mapping[str, Collection[str]], names: str) -> None:
    """Check that each set has only labels that train has too; `present` are the labels of each set.

    Raises:
        DataError: a set has another.
    """
    if "train" not in present:
        return
    for name, labels in present.items():
        odd = sorted({*labels} - {*present["train"]})
        if odd:
            raise DataError(
                f"--labels {names}: {name} has the label {odd[0]!r}, which no training image has: add images, or remove"
                " the label"
            )
