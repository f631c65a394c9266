"""Reads forms, multipart or urlencoded, into parts. A part's content is its bytes, with or without a filename."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serving.errors import BodyError

FIELDS = 1000
"""The most fields of a form."""

URLENCODED = "application/x-www-form-urlencoded"

LOSSLESS = "latin-1"
"""Starlette decodes what has no filename. In this charset each byte is one character, so the bytes can be had back."""


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    name: str
    content: bytes
    filename: str | None = None
    """None for a field of text; empty if a browser's form was sent without choosing a file."""


async def read_multipart(body: bytes, content_type: str) -> list[Part]:
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

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers(
        {"content-type": f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'}
    )
    parser = MultiPartParser(headers, stream(), max_files=FIELDS, max_fields=FIELDS, max_part_size=len(body))
    try:
        form = await parser.parse()
    except MultiPartException as fault:
        raise BodyError(400, f"the form cannot be read: {fault.message}") from None
    parts = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            filename = _text(value.filename or "")
            parts.append(Part(_text(name), await value.read(), filename))
            await value.close()
        else:
            parts.append(Part(_text(name), value.encode(LOSSLESS)))
    return parts


def read_urlencoded(body: bytes) -> list[Part]:
    """The fields of a urlencoded form.

    Raises:
        BodyError: 400; it cannot be read.
    """
    try:
        fields = parse_qsl(body.decode(LOSSLESS), keep_blank_values=True, encoding=LOSSLESS, max_num_fields=FIELDS)
    except ValueError as fault:
        raise BodyError(400, f"the form cannot be read: {fault}") from None
    return [Part(_text(name), value.encode(LOSSLESS)) for name, value in fields]


def _text(lossless: str) -> str:
    return lossless.encode(LOSSLESS).decode("utf-8", "replace")
