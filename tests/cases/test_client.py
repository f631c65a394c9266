"""What people give to the client, and what goes wrong between it and the service."""

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mosa_deploy.cli import ask, main
from mosa_deploy.client import AsyncClient, Client
from mosa_deploy.client.schema import ANSWER
from mosa_deploy.errors import ConfigError, DataError, ServiceError
from mosa_deploy.utils.variables import unread_by_commands
from serving.settings import Settings, variable
from tests.support.fake_service import BROKEN, FakeService, Reply, StartService, fake_services

ANSWERED = Reply(200, json.dumps(ANSWER))
NO_TASKS = Reply(200, '{"tasks": []}')
GONE = Reply(404, '{"detail": "unknown task \'digits\'"}')
DONE = Reply(204, "")


@pytest.fixture
def start_service() -> Iterator[StartService]:
    with fake_services() as start:
        yield start


@pytest.fixture
def service(start_service: StartService) -> FakeService:
    return start_service(ANSWERED)


@pytest.mark.parametrize(
    "written",
    ["{host}", "{host}/", "http://{host}", "http://{host}/", "HTTP://{host}", " {host}\n", "//{host}"],
)
def test_an_address_without_a_scheme_is_http(start_service: StartService, written: str) -> None:
    service = start_service(NO_TASKS)
    with Client(written.format(host=service.address.removeprefix("http://"))) as client:
        assert client.tasks() == []
    assert service.received[0].path == "/v1/tasks"


@pytest.mark.parametrize("written", ["{host}/vision/mosa", "http://{host}/vision/mosa/"])
def test_a_service_behind_a_prefix_is_asked_there(service: FakeService, written: str) -> None:
    with Client(written.format(host=service.address.removeprefix("http://"))) as client:
        client.classify(b"the image", "digits")
    assert service.received[0].path == "/vision/mosa/classify"


@pytest.mark.parametrize("given", ["option", "variable"])
def test_the_command_assumes_http_too(
    start_service: StartService, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(Reply(200, json.dumps({"results": [ANSWER]})))
    address = service.address.removeprefix("http://")
    monkeypatch.setenv("MOSA_ADDRESS", address if given == "variable" else "")
    (tmp_path / "photo.jpg").write_bytes(b"the image")
    ask([str(tmp_path / "photo.jpg"), "--task", "digits", *(["--address", address] if given == "option" else [])])
    assert len(service.received) == 1


@pytest.mark.parametrize(
    "arguments", [("ask", "nowhere.jpg", "--task", "digits"), ("deploy", "nowhere"), ("backbone", "get")], ids=" ".join
)
def test_a_misspelt_variable_is_named_by_every_command(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MOSA_ADRESS", "MOSA_HOEM"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(sys, "argv", ["mosa", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "warning: MOSA_ADRESS is set, but nothing reads it: did you mean MOSA_ADDRESS?",
        "warning: MOSA_HOEM is set, but nothing reads it: did you mean MOSA_HOME?",
    ]


def test_no_variable_of_a_service_is_taken_for_a_misspelt_one_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(variable(name), "x")
    assert unread_by_commands() == []


@pytest.mark.parametrize("digest", ["", "3F0C", "the one before"])
def test_what_is_no_digest_is_left_to_the_service(start_service: StartService, digest: str) -> None:
    refused = Reply(422, '{"detail": "digest: String should match pattern"}')
    with Client(start_service(refused).address) as client, pytest.raises(ServiceError, match="digest: "):
        client.roll_back("digits", digest)


@pytest.mark.parametrize(
    "address", ["", "http://", "ftp://localhost", "localhost:port", "localhost:99999", "http://a b", "localhost/?a=1"]
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_what_is_no_address_is_named_with_one_that_is(client: Callable[[str], object], address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client(address)
    assert str(caught.value) == f"'{address}' is not an address: give one like http://localhost:3000"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500, 504])
def test_a_refusal_is_not_sent_again(start_service: StartService, status: int) -> None:
    service = start_service(Reply(status, '{"detail": "no"}'))
    with Client(service.address) as client, pytest.raises(ServiceError, match=r"^no$"):
        client.classify(b"the image", "digits")
    assert len(service.received) == 1


def test_a_removal_whose_answer_was_lost_is_done(start_service: StartService) -> None:
    service = start_service(BROKEN, GONE)
    with Client(service.address) as client:
        client.remove("digits")
    assert len(service.received) == 2


def test_the_async_client_s_removal_is_done_too(start_service: StartService) -> None:
    service = start_service(BROKEN, GONE)

    async def remove() -> None:
        async with AsyncClient(service.address) as client:
            await client.remove("digits")

    asyncio.run(remove())
    assert len(service.received) == 2


def test_a_task_that_was_never_there_cannot_be_removed(start_service: StartService) -> None:
    busy = Reply(503, '{"detail": "busy"}', {"retry-after": "0"})
    with Client(start_service(busy, GONE).address) as client, pytest.raises(ServiceError, match="unknown task"):
        client.remove("digits")


def test_a_rollback_whose_answer_was_lost_is_not_called_a_failure(start_service: StartService) -> None:
    with Client(start_service(BROKEN).address) as client, pytest.raises(ServiceError) as caught:
        client.roll_back("digits")
    assert str(caught.value).endswith("but the service may have done it: look before you ask again")


def test_a_time_to_come_back_may_be_a_date(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    with Client(start_service(Reply(503, "{}", {"retry-after": date}), NO_TASKS).address) as client:
        client.tasks()
    assert 25 < waits[0] < 40


def test_a_redirect_is_told_with_its_goal(start_service: StartService) -> None:
    service = start_service(Reply(301, "", {"location": "https://mosa.example/v1/tasks"}))
    with Client(service.address) as client, pytest.raises(ServiceError) as caught:
        client.tasks()
    assert "redirects to https://mosa.example/v1/tasks: give the address of the latter" in str(caught.value)


def test_a_task_given_as_text_is_not_taken_apart(start_service: StartService) -> None:
    service = start_service(Reply(200, json.dumps({"results": [ANSWER]})))
    with Client(service.address) as client:
        client.classify_by(b"the image", "digits")
    assert b"\r\n\r\ndigits\r\n" in service.received[0].body


@pytest.mark.parametrize("content", [bytearray(b"the image"), memoryview(b"the image")])
def test_bytes_of_any_type_are_an_image(service: FakeService, content: bytearray | memoryview) -> None:
    with Client(service.address) as client:
        client.classify(content, "digits")
    assert b"\r\n\r\nthe image\r\n" in service.received[0].body


BASE64 = base64.b64encode(bytes(range(256))).decode()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.jpg", "nowhere.jpg: No such file or directory"),
        ("https://example.com/cat.jpg", "https://example.com/cat.jpg: No such file or directory; give a path, or"),
        ("data:image/png;base64,iVBO", "data:image/png;base64,iVBO: No such file or directory; give a path, or"),
        (BASE64, f"'{BASE64[:40]}'... (344 characters): "),
        ("a\0b", "'a\\x00b'... (3 characters): no path of a file; give a path, or the bytes themselves"),
        (BytesIO(b"the image"), "a BytesIO is neither a file's bytes nor its path: give one of them"),
        (None, "a NoneType is neither a file's bytes nor its path: give one of them"),
        (["a.jpg"], "a list is neither a file's bytes nor its path: give one of them"),
    ],
)
def test_what_is_no_image_is_named_and_never_sent(service: FakeService, given: Any, said: str) -> None:
    with Client(service.address) as client, pytest.raises(DataError) as caught:
        client.classify(given, "digits")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert service.received == []
