"""Tables in Markdown, for reports."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A table with a head and one line per row; every cell is turned into text.

    `align` has one letter per column, `l` or `r`, e.g. `lrr`; without it all columns are on the left. A `|` in a cell
    is escaped, and a line break becomes a space.
    """
    sides = align or "l" * len(head)
    rule = ["---:" if side == "r" else "---" for side in sides]
    return "\n".join(_line(cells) for cells in (map(_escape, head), rule, *(map(_escape, row) for row in rows)))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(cell: object) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")
