"""Images that arrive as text: base64, a `data:` URL, or by mistake a path or the URL of an image elsewhere."""

import base64
import binascii
import re
from urllib.parse import unquote

from serving.errors import BodyError, shown
from serving.images import is_image

URL = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
DATA_URL = re.compile(r"data:[^,]*,", re.IGNORECASE)
PYTHON_BYTES = re.compile(r"b['\"]")
OUTSIDE_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
URL_SAFE = str.maketrans("-_", "+/")

LONGEST_PATH = 1000
"""A text with more characters is no path."""


def image_from_text(text: str, field: str) -> bytes:
    """The bytes of an image that is sent as text; errors call it `field`.

    base64 may be broken into lines, lack its padding, use the alphabet of URLs, and stand in a `data:` URL.

    Raises:
        BodyError: 422; the text is something else.
    """
    text = text.strip("\ufeff \t\r\n")
    if not text:
        raise BodyError(422, f"{field} is empty")
    if head := DATA_URL.match(text):
        if not head[0].lower().endswith(";base64,"):
            raise BodyError(422, f"{field} is a data: URL without base64")
        return _decoded(unquote(text[head.end() :]), field)
    if URL.match(text):
        raise BodyError(422, f"{field} is a URL, and the service fetches nothing: download the image, and send it")
    if PYTHON_BYTES.match(text):
        raise BodyError(422, f"{field} is bytes as Python prints them: send base64.b64encode(content).decode()")
    if len(text) > LONGEST_PATH:
        return _decoded(text, field)
    try:
        content = _decoded(text, field)
    except BodyError:
        content = b""
    if not is_image(content):
        raise BodyError(
            422,
            f"{field} is the text '{shown(text)}', neither a file nor base64 of an image"
            " (curl sends a file where @ stands before its name)",
        )
    return content


def unwrapped(content: bytes) -> bytes:
    """An image's bytes, also where a client sent base64 of them, or a `data:` URL, as a file."""
    if not content.isascii() or is_image(content):
        return content
    try:
        inside = image_from_text(content.decode("ascii"), "image")
    except BodyError:
        return content
    return inside if is_image(inside) else content


def _decoded(text: str, field: str) -> bytes:
    packed = "".join(text.split()).translate(URL_SAFE)
    if odd := OUTSIDE_BASE64.search(packed):
        raise BodyError(422, f"{field} is not base64: it has {shown(odd[0])!r} as character {odd.start() + 1}")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise BodyError(422, f"{field} is not base64: its {len(packed)} characters are no whole bytes") from None
