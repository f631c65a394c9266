"""Read a table of files and labels: CSV as spreadsheets write it, JSON and JSON Lines as Hugging Face does."""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mosa_deploy.errors import DataError

NOT_TEXT = {
    b"PK\x03\x04": "a spreadsheet or an archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
}
"""First bytes -> files that are no text."""

WANTED = "give a CSV file with columns file and label, or a JSONL file with these fields"

DELIMITERS = "\t;,| "
"""What may part columns; a blank only if nothing else does."""

Row = dict[str, str]
"""Column -> value. Lists and objects of JSON are JSON text."""


@dataclass(frozen=True)
class Table:
    """A table with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    """The line of each row in the file, and its values."""

    def where(self, line: int) -> str:
        """A line, for messages."""
        return f"{self.path}:{line}"


def read_table(path: Path) -> Table:
    """Read a CSV, JSON or JSON Lines file, by its content and not by its suffix.

    Raises:
        DataError: it is missing, no text, damaged or empty.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"--labels {path} is empty: {WANTED}")
    if text.lstrip().startswith(("{", "[")):
        return _from_json(path, text)
    return _from_csv(path, text)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DataError: it is missing or no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"--labels {path}: {error.strerror}; {WANTED}") from None
    kind = next((kind for mark, kind in NOT_TEXT.items() if content.startswith(mark)), None)
    if kind:
        raise DataError(f"--labels {path} is {kind}: save it as CSV")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f'--labels {path}:{line} is not UTF-8: save it as "CSV UTF-8"') from None
    if "\0" in text:
        raise DataError(f"--labels {path} is no text: {WANTED}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_csv(path: Path, text: str) -> Table:
    first, _, rest = text.partition("\n")
    said = re.fullmatch(r"sep=(.)", first.strip(), re.IGNORECASE)  # Excel's own way to say it.
    offset = 1 if said else 0
    delimiter = said[1] if said else _delimiter(text)
    reader = csv.reader(io.StringIO(rest if said else text), delimiter=delimiter, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for values in reader:
            if any(value.strip() for value in values):
                lines.append((reader.line_num + offset, [value.strip() for value in values]))
    except csv.Error as error:
        raise DataError(f"--labels {path}:{reader.line_num + offset}: {error}: {WANTED}") from None
    header = lines.pop(0)[1]
    while header and not header[-1]:
        header.pop()
    doubled = next((name for name in header if name and header.count(name) > 1), None)
    if doubled:
        raise DataError(f"--labels {path} has two columns {doubled!r}: rename one")
    rows = []
    for line, values in lines:
        if len(values) < len(header) or any(values[len(header) :]):
            raise DataError(f"--labels {path}:{line} has {len(values)} columns, the header has {len(header)}: mend it")
        rows.append((line, dict(zip(header, values, strict=False))))
    return Table(path, tuple(header), tuple(rows))


def _delimiter(text: str) -> str:
    """The character that parts the header into the most columns; a comma if none does."""
    header = next(line for line in text.splitlines() if line.strip())

    def columns(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter)))

    best = max(DELIMITERS[:-1], key=columns)
    return best if columns(best) > 1 else " " if columns(" ") > 1 else ","


def _from_json(path: Path, text: str) -> Table:
    rows, columns = [], dict[str, None]()
    for number, entry in _entries(path, text):
        if not isinstance(entry, dict):
            raise DataError(f"--labels {path}:{number} is no JSON object: {WANTED}")
        rows.append((number, {name: _text(value) for name, value in entry.items()}))
        columns |= dict.fromkeys(entry)
    return Table(path, tuple(columns), tuple(rows))


def _entries(path: Path, text: str) -> list[tuple[int, object]]:
    """The rows of a JSON list, of JSON Lines, or of one object that maps files to labels, and where they stand.

    Raises:
        DataError: it is neither.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        return list(enumerate(whole, start=1))
    if isinstance(whole, dict) and any(isinstance(value, list | dict) for value in whole.values()):
        raise DataError(f"--labels {path} is one JSON object, not one for each image: {WANTED}")
    if isinstance(whole, dict) and len(whole) > 1 and all(PurePosixPath(name).suffix for name in whole):
        pairs = ({"file": name, "label": label} for name, label in whole.items())
        return list(enumerate(pairs, start=1))
    entries: list[tuple[int, object]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            entries += [(number, json.loads(line))] if line.strip() else []
        except (ValueError, RecursionError):
            raise DataError(f"--labels {path}:{number} is not JSON: {WANTED}") from None
    return entries


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)
