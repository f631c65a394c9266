"""One cell of a table that names the labels of an image: `cat|dog`, `cat;dog`, `cat, dog` or `["cat", "dog"]`."""

import json
from collections.abc import Iterable

SEPARATORS = "|;,"
"""What may part labels in a cell; the first of them that a column uses."""

EMPTY = ("", "nan", "null", "n/a", "#n/a")
"""What a cell without a value holds, in lower case. `none` may be a class."""


def separator_of(cells: Iterable[str]) -> str | None:
    """What parts the labels in these cells; None if nothing does."""
    plain = [cell for cell in cells if not cell.startswith(("[", "{"))]
    return next((each for each in SEPARATORS if any(each in cell for cell in plain)), None)


def split_labels(cell: str, separator: str | None) -> tuple[str, ...]:
    """The labels in a cell, each once and in their order; none if it is empty.

    Raises:
        ValueError: it looks like JSON, and is no list of labels.
    """
    if cell.startswith("{"):
        raise ValueError("an object names no labels")
    if cell.startswith("["):
        found = json.loads(cell)
        if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in found):
            raise ValueError("a list of labels holds texts")
        parts = [str(each).strip() for each in found]
    else:
        parts = [part.strip() for part in (cell.split(separator) if separator else [cell])]
    return tuple(dict.fromkeys(part for part in parts if part.lower() not in EMPTY))
