"""Compressed bodies: `Content-Encoding: gzip` and `deflate`, up to the limit that holds for any body."""

import zlib

from serving.errors import RequestError

KNOWN = "gzip, deflate"

GZIP, ZLIB, BARE = zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS
"""zlib's names for what comes before and after the compressed data."""


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its encoding. What would be larger than `limit` is never held.

    Raises:
        RequestError: 400 if it is damaged or breaks off, 413 if it is too large, 415 if the encoding is unknown.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            formats = [GZIP]
        case "deflate":
            # Servers and clients disagree about what the name means.
            formats = [ZLIB, BARE]
        case other:
            raise RequestError(415, f"Content-Encoding: {other} is not read: send the body as it is, or in {KNOWN}")
    for form in formats:
        try:
            return _inflated(body, form, limit)
        except (zlib.error, EOFError):
            continue
    raise RequestError(400, f"the body is not whole {encoding}, as Content-Encoding says: send it as it is")


def _inflated(body: bytes, form: int, limit: int) -> bytes:
    """Raises zlib.error or EOFError if the body is damaged or breaks off."""
    parts: list[bytes] = []
    size = 0
    while body:
        inflater = zlib.decompressobj(form)
        parts.append(inflater.decompress(body, limit - size + 1))
        size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
        if not inflater.eof:
            raise EOFError
        # A gzip file may have several members.
        body = inflater.unused_data
    return b"".join(parts)


def too_large(limit: int) -> RequestError:
    """413: the body has more bytes than MOSA_MAX_UPLOAD."""
    return RequestError(413, f"the body has more than {limit} bytes, which is the limit: send less at once")
