"""Text files as people have them: UTF-8 or UTF-16 with a byte order mark, and what older Windows programs write."""

import codecs
import json
from pathlib import Path
from typing import Any

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(content: bytes) -> str:
    r"""The characters of a text file, its line ends as `\n`. What is not UTF-8 is read as Windows' cp1252."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(decode_text(path.read_bytes()))
