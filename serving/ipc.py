"""Messages between the workers and their leader over a Unix socket: a JSON head and blobs. Nothing is unpickled.

4 bytes: length of the head    head: {"sizes": [...], ...}    the blobs, one after the other
"""

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = struct.Struct("<I")

Head = dict[str, Any]


async def send(writer: asyncio.StreamWriter, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one message.

    Raises:
        OSError: the connection is closed.
    """
    # uvloop would raise a RuntimeError.
    if writer.is_closing():
        raise ConnectionResetError("the connection is closed")
    text = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}).encode()
    writer.write(HEAD.pack(len(text)))
    writer.write(text)
    for blob in blobs:
        writer.write(blob)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> tuple[Head, list[bytes]]:
    """Read one message.

    Raises:
        asyncio.IncompleteReadError: the other side has closed the connection.
    """
    (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
    head: Head = json.loads(await reader.readexactly(length))
    return head, [await reader.readexactly(size) for size in head.pop("sizes")]
