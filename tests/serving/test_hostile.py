"""Whatever is sent, the answer is a 4xx that says why, memory stays flat, and the store and its answers stay."""

import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from tests.support.app import GROWTH, changing, memory, put, top
from tests.support.files import files_of
from tests.support.hostile import bundles, images
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker, picture


@pytest.fixture(scope="module")
def store(maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("hostile") / "store"))


@pytest.fixture(scope="module")
def hostile(store: Path) -> Iterator[TestClient]:
    with changing(store) as client:
        yield client


def test_the_corpus_is_large(archives: Mapping[str, Archive]) -> None:
    names = [name for name, _ in (*images(), *bundles(archives["birds"]))]
    assert len(names) == len(set(names)) >= 200


def test_no_image_of_the_corpus_is_more_than_a_fault_of_its_sender(
    hostile: TestClient, store: Path, maker: TaskMaker
) -> None:
    before, files, odd = memory(), files_of(store), {}
    for name, content in images():
        answer = hostile.post("/classify", files={"image": ("x", content)}, data={"task": "birds"})
        # A broken byte of a head may leave an image that is still one.
        fine = (200, 400, 415) if "broken head" in name else (400, 415)
        if answer.status_code not in fine or (answer.status_code != 200 and "\n" in answer.json()["detail"]):
            odd[name] = answer.status_code, answer.text[:200]
    assert odd == {}
    assert top(hostile, "birds", maker.images[1])[0] == "class-1"
    assert memory() - before < GROWTH
    assert files_of(store) == files


def test_no_bundle_of_the_corpus_changes_anything(
    hostile: TestClient, store: Path, maker: TaskMaker, archives: Mapping[str, Archive]
) -> None:
    before, files, odd = memory(), files_of(store), {}
    for name, content in bundles(maker.make("birds", 9)):
        answer = put(hostile, "birds", content)
        if answer.status_code not in (400, 409, 413, 422) or "\n" in str(answer.json()["detail"]):
            odd[name] = answer.status_code, answer.text[:200]
    assert odd == {}
    assert top(hostile, "birds", maker.images[1]) == ("class-1", archives["birds"].bundle().digest)
    assert memory() - before < GROWTH
    assert files_of(store) == files


# Starlette's parser drops the file of a part that never ends without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc',
        b"--x\r\nContent-Disposition: nonsense\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="task"\r\n\r\n\xff\xfe\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' * 1500 + b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="task"\r\n\r\n' + b"a" * 2_000_000 + b"\r\n--x--\r\n",
    ],
    ids=["empty", "half", "unclosed", "no name", "no file", "no text", "1500 files", "a long field"],
)
def test_wrong_multipart_is_its_sender_s_fault(hostile: TestClient, body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/json", "text/plain", ""):
        answer = hostile.post("/classify", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500, answer.text[:200]


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(store, tmp_path_factory.mktemp("raw"), threads="1", body_s="1") as server:
        server.wait_until("ready")
        yield server


def raw(server: Server, content: bytes) -> bytes:
    """Send bytes as they are; how the answer begins, nothing where the server hangs up."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        try:
            line.sendall(content)
            return line.recv(1 << 16)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n", (b"400", b"431", b"")),
        (b"GET /v1/tasks HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", (b"400", b"431", b"200", b"")),
        (b"nonsense\r\n\r\n", (b"400",)),
        (b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: ten\r\n\r\n", (b"400",)),
        (b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\nabc", (b"413",)),
        (b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc", (b"408",)),
        (b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (b"400",)),
        (b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", (b"408",)),
    ],
    ids=[
        "huge header",
        "many headers",
        "nonsense",
        "no length",
        "huge length",
        "slow body",
        "no chunk",
        "half a chunk",
    ],
)
def test_raw_requests_that_no_client_would_send(server: Server, content: bytes, statuses: tuple[bytes, ...]) -> None:
    answer = raw(server, content)
    assert (answer.split(b" ", 2)[1] if answer else b"") in statuses, answer[:300]
    assert server.classify("birds", picture()).status_code == 200
