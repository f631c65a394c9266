"""A worker asks over a connection that the inference process has closed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from serving.errors import RequestError
from serving.remote_backend import Connection


async def ask_after_the_end(socket: Path) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(end, socket):
        connection = Connection(*await asyncio.open_unix_connection(socket))
        assert not await connection.reader.read()
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(RequestError, match=r"^the inference process is starting again") as caught:
                await connection.ask({"call": "tasks"})
            assert caught.value.status == 503


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_that_was_closed_is_a_503(loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask_after_the_end(tmp_path / "leader.sock"))
