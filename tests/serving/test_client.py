import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.client import Answer, AsyncClient, Client, Failure
from mosa_deploy.errors import ServiceError
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker
from tests.support.walker import ROOT


@pytest.fixture(scope="module")
def server(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(maker.root, folder / "artifacts")
    with serve(folder / "artifacts", folder, admin_keys="root-key", threads="1") as server:
        server.wait_until("ready")
        yield server


def test_one_image_many_images_and_many_tasks(server: Server, maker: TaskMaker) -> None:
    with Client(server.address) as client:
        assert client.classify(maker.images[2], "birds").label == "class-2"
        asked = [(image, ("birds", "cracks")[i % 2]) for i, image in enumerate(maker.images)]
        answers = list(client.classify_many([*asked, (b"text", "birds")], batch=5))
        assert [each.label for each in answers if isinstance(each, Answer)] == [f"class-{i + i % 2}" for i in range(16)]
        assert isinstance(answers[-1], Failure)
        assert answers[-1].status == 415
        by = client.classify_by(maker.images[0], ["birds", "cracks", "dogs"])
        assert [getattr(each, "label", None) for each in by] == ["class-0", "class-1", None]


def test_the_async_client_says_the_same(server: Server, maker: TaskMaker) -> None:
    async def asked() -> list[str]:
        async with AsyncClient(server.address) as client:
            answers = await asyncio.gather(*(client.classify(image, "cracks") for image in maker.images))
            many = await client.classify_many([(image, "birds") for image in maker.images], batch=7)
            by = await client.classify_by(maker.images[0], ["birds", "fields"])
            names = [task.task for task in await client.tasks()]
        return [*(each.label for each in (*answers, *many, *by) if isinstance(each, Answer)), *names]

    expected = [f"class-{i + turn}" for turn in (1, 0) for i in range(16)] + ["class-0", "class-2"]
    assert asyncio.run(asked()) == [*expected, "birds", "cracks", "fields", "fields.b", "grains"]


def test_changes_from_a_folder_and_from_a_file(server: Server, maker: TaskMaker, tmp_path: Path) -> None:
    first, second = maker.make("moths", 3), maker.make("moths", 4)
    for name, content in (("adapter.json", first.record), ("adapter.safetensors", first.tensors)):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "second.mosa").write_bytes(second.pack())
    with Client(server.address, "root-key") as client:
        assert client.put("moths", tmp_path).bundle == first.bundle().digest
        assert client.put("moths", tmp_path / "second.mosa", lane="folded").lane == "folded"
        assert client.roll_back("moths").bundle == first.bundle().digest
        assert client.pin("moths").pinned
        assert not client.pin("moths", pinned=False).pinned
        assert client.task("moths").state == "active"
        client.remove("moths")
        with pytest.raises(ServiceError, match="unknown task 'moths'") as caught:
            client.task("moths")
        assert caught.value.status == 404

    async def again() -> None:
        async with AsyncClient(server.address, "root-key") as other:
            assert (await other.put("moths", second.pack(), new_classes=True)).bundle == second.bundle().digest
            assert (await other.pin("moths")).pinned
            assert (await other.roll_back("moths")).bundle == first.bundle().digest
            await other.remove("moths")
            with pytest.raises(ServiceError):
                await other.task("moths")

    asyncio.run(again())
    with Client(server.address) as client, pytest.raises(ServiceError, match="admin keys"):
        client.remove("birds")


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["{image}", "--task", "birds", "--task", "cracks"], 0, ["birds: class-0 0.8", "cracks: class-1 0.8"]),
        (["{image}", "--task", "dogs"], 2, ["dogs: no answer (404): unknown task 'dogs'"]),
        (["nowhere.png", "--task", "birds"], 2, ["error: nowhere.png: No such file or directory"]),
        (["{image}", "--task", "birds", "--address", "http://127.0.0.1:9"], 2, ["error: the service does not answer"]),
    ],
)
def test_asking_by_the_command_line(
    server: Server, maker: TaskMaker, tmp_path: Path, arguments: list[str], code: int, shown: list[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(maker.images[0])
    given = [argument.format(image=image) for argument in arguments]
    address = [] if "--address" in given else ["--address", server.address]
    command = [sys.executable, "-m", "serving.ask", *given, *address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    for text in shown:
        assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


Handle = Callable[[BaseHTTPRequestHandler, int], None]


@pytest.fixture
def flaky() -> Iterator[Callable[[Handle], tuple[str, list[str]]]]:
    """A local server whose n-th answer a test chooses; its address, and the paths that it was asked for."""
    servers: list[ThreadingHTTPServer] = []

    def start(handle: Handle) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                handle(self, len(asked))

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, text: str, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text.encode())


def test_what_passes_is_asked_again_not_before_its_time(
    flaky: Callable[[Handle], tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)

    def handle(handler: BaseHTTPRequestHandler, n: int) -> None:
        if n == 1:
            reply(handler, 503, '{"detail": "busy"}', retry_after="7")
        elif n == 2:
            handler.connection.close()
        else:
            reply(handler, 200, '{"tasks": []}')

    address, asked = flaky(handle)
    with Client(address) as client:
        assert client.tasks() == []
    assert len(asked) == 3
    assert waits[0] >= 7 > waits[1]


@pytest.mark.parametrize("status", [400, 404, 409, 500, 503])
def test_what_does_not_pass_is_not_asked_again(flaky: Callable[[Handle], tuple[str, list[str]]], status: int) -> None:
    address, asked = flaky(lambda handler, n: reply(handler, status, '{"detail": "no"}'))
    with Client(address) as client, pytest.raises(ServiceError, match=r"^no$") as caught:
        client.tasks()
    assert caught.value.status == status
    assert len(asked) == 1


def test_it_gives_up_with_what_was_said_last(flaky: Callable[[Handle], tuple[str, list[str]]]) -> None:
    address, asked = flaky(lambda handler, n: reply(handler, 503, f'{{"detail": "busy {n}"}}', retry_after="0"))
    with Client(address, attempts=3) as client, pytest.raises(ServiceError, match=r"^busy 3$"):
        client.tasks()
    assert len(asked) == 3
