import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import tenacity

from mosa_deploy.client import AsyncClient, Client, requests
from mosa_deploy.client.requests import ApiRequest
from mosa_deploy.client.retries import should_retry
from mosa_deploy.errors import ConfigError, ServiceError
from tests.support.fake_service import BROKEN, Reply, StartService

NO_TASKS = Reply(200, '{"tasks": []}')
BUSY = Reply(503, '{"detail": "busy"}', {"retry-after": "0"})


def retried(request: ApiRequest[Any], outcome: httpx.Response | Exception) -> bool:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (request,), {})
    if isinstance(outcome, Exception):
        state.set_exception((type(outcome), outcome, None))
    else:
        state.set_result(outcome)
    return should_retry(state)


def certificate_fault() -> httpx.ConnectError:
    """What httpx raises for a certificate that nobody signed."""
    fault = httpx.ConnectError("certificate verify failed")
    fault.__cause__ = ssl.SSLCertVerificationError()
    return fault


@pytest.mark.parametrize(
    ("outcome", "any_request", "rollback"),
    [
        (httpx.ConnectError("refused"), True, True),
        (certificate_fault(), False, False),
        (httpx.UnsupportedProtocol("ftp"), False, False),
        (httpx.LocalProtocolError("illegal header"), False, False),
        (httpx.ConnectTimeout("slow"), True, True),
        (httpx.ReadTimeout("slow"), True, False),
        (httpx.RemoteProtocolError("broken"), True, False),
        (ValueError("a bug"), False, False),
        (httpx.Response(429), True, True),
        (httpx.Response(429, headers={"retry-after": "86400"}), False, False),
        *[(httpx.Response(status), False, False) for status in (400, 401, 403, 404, 409, 413, 415, 422)],
        (httpx.Response(503, headers={"retry-after": "1"}), True, False),
        (httpx.Response(503), False, False),
        (httpx.Response(500, headers={"retry-after": "1"}), False, False),
        (httpx.Response(200), False, False),
    ],
)
def test_only_temporary_faults_are_retried(
    outcome: httpx.Response | Exception, any_request: bool, rollback: bool
) -> None:
    assert (retried(requests.tasks(), outcome), retried(requests.roll_back("a", None, False), outcome)) == (
        any_request,
        rollback,
    )


def test_a_request_is_retried_not_before_the_service_says_so(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    busy = Reply(503, '{"detail": "busy"}', {"retry-after": "7"})
    service = start_service(busy, BROKEN, NO_TASKS)
    with Client(service.address) as client:
        assert client.tasks() == []
    assert len(service.received) == 3
    assert waits[0] >= 7 > waits[1]


def test_the_async_client_retries_too(start_service: StartService) -> None:
    service = start_service(BUSY, BROKEN, NO_TASKS)

    async def ask() -> list[Any]:
        async with AsyncClient(service.address) as client:
            return await client.tasks()

    assert asyncio.run(ask()) == []
    assert len(service.received) == 3


@pytest.mark.parametrize("status", [400, 404, 409, 500, 503])
def test_other_faults_are_raised_at_once(start_service: StartService, status: int) -> None:
    service = start_service(Reply(status, '{"detail": "no"}'))
    with Client(service.address) as client, pytest.raises(ServiceError, match=r"^no$") as caught:
        client.tasks()
    assert (caught.value.status, len(service.received)) == (status, 1)


def test_the_last_fault_is_raised_after_the_last_attempt(start_service: StartService) -> None:
    service = start_service(*(Reply(503, f'{{"detail": "busy {n}"}}', {"retry-after": "0"}) for n in range(4)))
    with Client(service.address, attempts=3) as client, pytest.raises(ServiceError, match=r"^busy 2$"):
        client.tasks()


@pytest.mark.parametrize("first", [BROKEN, BUSY])
def test_a_rollback_that_may_have_happened_is_not_sent_again(start_service: StartService, first: Reply | None) -> None:
    service = start_service(first, NO_TASKS)
    with Client(service.address) as client, pytest.raises(ServiceError):
        client.roll_back("digits")
    assert [each.path for each in service.received] == ["/v1/tasks/digits/rollback"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(200, "<html>"), r"^{address}/v1/tasks answers, but not as this version of the service does: check"),
        (Reply(502, "<html>"), r"^the service answers HTTP 502 Bad Gateway$"),
    ],
)
def test_what_is_no_mosa_service_is_told_in_one_line(start_service: StartService, reply: Reply, said: str) -> None:
    service = start_service(reply)
    with Client(service.address) as client, pytest.raises(ServiceError, match=said.format(address=service.address)):
        client.tasks()


@pytest.mark.parametrize("address", ["ftp://localhost", "http://", "http://localhost:port", ""])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_that_is_none_is_named(client: Callable[[str], object], address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an address: give one like http://localhost:3000$") as caught:
        client(address)
    assert str(caught.value).startswith(f"'{address}'")


def test_a_key_that_http_cannot_send_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_KEY", "secret\n")
    with pytest.raises(ConfigError, match="does it end with a line break") as caught:
        Client("http://localhost:3000")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("given", "sent"), [(None, "Bearer from-env"), ("argument", "Bearer argument")])
def test_the_key_is_sent(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, given: str | None, sent: str
) -> None:
    monkeypatch.setenv("MOSA_KEY", "from-env")
    service = start_service(NO_TASKS)
    with Client(service.address, given) as client:
        client.tasks()
    assert service.received[0].headers["authorization"] == sent
