"""Reads forms, multipart or urlencoded, into parts. A part's content is its bytes, with or without a filename."""

from dataclasses import dataclass
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import BodyError

FIELDS = 1000
"""The most fields of a form."""

URLENCODED = "application/x-www-form-urlencoded"

LOSSLESS = "latin-1"
"""In this charset each byte is one character, so the bytes can be had back."""


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    name: str
    content: bytes
    filename: str | None = None
    """None for a field of text; empty if a browser's form was sent without choosing a file."""


def read_multipart(body: bytes, content_type: str) -> list[Part]:
    """The parts of a multipart form.

    Raises:
        BodyError: 400; it cannot be read, or breaks off.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise BodyError(400, "the form's Content-Type has no boundary: let your client write it")
    if b"--" + boundary not in body:
        raise BodyError(400, "the boundary of the form's Content-Type is not in its body: let your client write it")
    if b"--" + boundary + b"--" not in body:
        raise BodyError(400, "the form breaks off: its closing boundary is missing")
    reader = PartReader()
    try:
        reader.read(body, boundary)
    except FormParserError:
        raise BodyError(400, "the form cannot be read: it is not multipart/form-data") from None
    return reader.parts


class PartReader:
    """Collects the parts of a form whose whole body is in memory.

    Starlette's parser would copy each file into a temporary one, for bodies that are not.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._header, self._value, self._disposition = b"", b"", b""
        self._name = ""
        self._filename: str | None = None
        self._content: list[bytes] = []

    def read(self, body: bytes, boundary: bytes) -> None:
        """Read all parts.

        Raises:
            FormParserError: the body is not a form.
            BodyError: 400; a part has no name, or there are too many parts.
        """
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_to_header,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_to_content,
                "on_part_end": self._end,
            },
        )
        parser.write(body)
        parser.finalize()

    def _begin(self) -> None:
        if len(self.parts) >= FIELDS:
            raise BodyError(400, f"the form cannot be read: it has more than {FIELDS} fields")
        self._disposition, self._content = b"", []

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise BodyError(400, "the form cannot be read: The Content-Disposition of each field must have its `name`")
        self._name = _utf8(options[b"name"])
        self._filename = _utf8(options[b"filename"]) if b"filename" in options else None

    def _add_to_content(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        self.parts.append(Part(self._name, b"".join(self._content), self._filename))


def read_urlencoded(body: bytes) -> list[Part]:
    """The fields of a urlencoded form.

    Raises:
        BodyError: 400; it cannot be read.
    """
    try:
        fields = parse_qsl(body.decode(LOSSLESS), keep_blank_values=True, encoding=LOSSLESS, max_num_fields=FIELDS)
    except ValueError as fault:
        raise BodyError(400, f"the form cannot be read: {fault}") from None
    return [Part(_utf8(name.encode(LOSSLESS)), value.encode(LOSSLESS)) for name, value in fields]


def _utf8(text: bytes) -> str:
    return text.decode("utf-8", "replace")
