"""A typed client of the service, sync and async, with retries and batches.

    with Client("http://localhost:3000") as client:
        client.classify("image.jpg", "digits").label

Requests that failed for a temporary reason are retried, and not before the service says so.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity
from pydantic import ValidationError

from mosa_deploy.client import requests
from mosa_deploy.client.requests import ApiRequest, Picture
from mosa_deploy.client.schema import Answer, ChosenLane, Failure, Fault, Task
from mosa_deploy.errors import ConfigError, ServiceError
from mosa_deploy.utils.files import Content

T = TypeVar("T")

BATCH = 16
"""Images per request."""

NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""The service never saw the request."""


def should_retry(state: tenacity.RetryCallState) -> bool:
    """Whether a request failed for a temporary reason: no response, 429, or 503 with Retry-After.

    A request that must not be carried out twice is sent again only if the service has not begun it.
    """
    assert state.outcome is not None
    request: ApiRequest[Any] = state.args[0]
    if state.outcome.failed:
        return isinstance(state.outcome.exception(), httpx.TransportError if request.repeatable else NOT_CONNECTED)
    response: httpx.Response = state.outcome.result()
    if response.status_code == 503:
        return request.repeatable and "retry-after" in response.headers
    return response.status_code == 429


def retry_delay(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: those that the service asks for, and a random time that grows, so that clients spread out."""
    assert state.outcome is not None
    spread = float(tenacity.wait_random_exponential(multiplier=0.1, max=5)(state))
    if state.outcome.failed:
        return spread
    asked = str(state.outcome.result().headers.get("retry-after", ""))
    return spread + (float(asked) if asked.isdigit() else 0)


def last_outcome(state: tenacity.RetryCallState) -> Any:
    """Return the last attempt's response, or raise its exception."""
    assert state.outcome is not None
    return state.outcome.result()


def read_response(request: ApiRequest[T], response: httpx.Response) -> T:
    """Parse the response to a request.

    Raises:
        ServiceError: the service refused the request, or it is not a service of this kind.
    """
    if response.is_success:
        try:
            return request.parse(response.content)
        except ValidationError:
            detail = f"{response.url} answers, but not as this version of the service does: check the address"
            raise ServiceError(response.status_code, detail) from None
    try:
        detail = Fault.model_validate_json(response.content).detail
    except ValidationError:
        detail = f"the service answers HTTP {response.status_code} {response.reason_phrase}".rstrip()
    raise ServiceError(response.status_code, detail)


def unreachable(fault: httpx.TransportError) -> ServiceError:
    """The error for a request without any response."""
    reason = str(fault) or type(fault).__name__
    return ServiceError(0, f"the service does not answer ({reason}): is it running at that address?")


def _connection(address: str, key: str | None, timeout: float) -> dict[str, Any]:
    """The arguments of httpx's clients, sync and async.

    Raises:
        ConfigError: the address or the key cannot be used.
    """
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"'{address}' is not an address: give one like http://localhost:3000")
    key = key or os.environ.get("MOSA_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("the key holds characters that HTTP cannot send: does it end with a line break?")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": False}


def _retrying(attempts: int) -> dict[str, Any]:
    return {
        "retry": should_retry,
        "wait": retry_delay,
        "stop": tenacity.stop_after_attempt(attempts),
        "retry_error_callback": last_outcome,
    }


class Client:
    """Sends requests to a service. `key` is an API key or, for changes, an admin's; None takes MOSA_KEY.

    Every method may raise ServiceError for what the service refuses, and DataError for a file that cannot be read.
    """

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.Client(**_connection(address, key, timeout))
        retrying = tenacity.Retrying(**_retrying(attempts))
        self._send: Callable[[ApiRequest[Any]], httpx.Response] = retrying.wraps(self._send_once)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _send_once(self, request: ApiRequest[Any]) -> httpx.Response:
        return self._http.request(request.method, request.path, **request.options)

    def _ask(self, request: ApiRequest[T]) -> T:
        try:
            response = self._send(request)
        except httpx.TransportError as fault:
            raise unreachable(fault) from None
        return read_response(request, response)

    def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """Classify one image, given by its bytes or its path, by one task.

        Raises:
            DataError: the file cannot be read.
            ServiceError: there is no answer.
        """
        return self._ask(requests.classify(picture, task, top_k))

    def classify_many(
        self, pairs: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> Iterator[Answer | Failure]:
        """Classify images, each by its own task, `batch` per request; yield the results in the same order."""
        for request in requests.classify_many(pairs, top_k, batch):
            yield from self._ask(request)

    def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """Classify one image by several tasks; one result per task."""
        return self._ask(requests.classify_by(picture, tasks, top_k))

    def tasks(self) -> list[Task]:
        """List every task."""
        return self._ask(requests.tasks())

    def task(self, name: str) -> Task:
        """Describe one task."""
        return self._ask(requests.task(name))

    def put(self, name: str, bundle: Content, new_classes: bool = False, lane: ChosenLane | None = None) -> Task:
        """Serve a `.mosa` file, or the bundle in a folder, as a task's new version.

        Raises:
            BundleError: the folder holds no whole bundle.
            DataError: the file cannot be read.
            ServiceError: the service refuses the bundle.
        """
        return self._ask(requests.put(name, bundle, new_classes, lane))

    def remove(self, name: str) -> None:
        """Stop serving a task."""
        self._ask(requests.remove(name))

    def roll_back(self, name: str) -> Task:
        """Serve the previous version."""
        return self._ask(requests.roll_back(name))

    def pin(self, name: str, pinned: bool = True) -> Task:
        """Keep a task loaded, or stop keeping it."""
        return self._ask(requests.pin(name, pinned))


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.AsyncClient(**_connection(address, key, timeout))
        retrying = tenacity.AsyncRetrying(**_retrying(attempts))
        self._send: Callable[[ApiRequest[Any]], Awaitable[httpx.Response]] = retrying.wraps(self._send_once)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _send_once(self, request: ApiRequest[Any]) -> httpx.Response:
        return await self._http.request(request.method, request.path, **request.options)

    async def _ask(self, request: ApiRequest[T]) -> T:
        try:
            response = await self._send(request)
        except httpx.TransportError as fault:
            raise unreachable(fault) from None
        return read_response(request, response)

    async def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """See `Client.classify`."""
        return await self._ask(requests.classify(picture, task, top_k))

    async def classify_many(
        self, pairs: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> list[Answer | Failure]:
        """See `Client.classify_many`; returns all results at once."""
        return [each for request in requests.classify_many(pairs, top_k, batch) for each in await self._ask(request)]

    async def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """See `Client.classify_by`."""
        return await self._ask(requests.classify_by(picture, tasks, top_k))

    async def tasks(self) -> list[Task]:
        """See `Client.tasks`."""
        return await self._ask(requests.tasks())

    async def task(self, name: str) -> Task:
        """See `Client.task`."""
        return await self._ask(requests.task(name))

    async def put(self, name: str, bundle: Content, new_classes: bool = False, lane: ChosenLane | None = None) -> Task:
        """See `Client.put`."""
        return await self._ask(requests.put(name, bundle, new_classes, lane))

    async def remove(self, name: str) -> None:
        """See `Client.remove`."""
        await self._ask(requests.remove(name))

    async def roll_back(self, name: str) -> Task:
        """See `Client.roll_back`."""
        return await self._ask(requests.roll_back(name))

    async def pin(self, name: str, pinned: bool = True) -> Task:
        """See `Client.pin`."""
        return await self._ask(requests.pin(name, pinned))
