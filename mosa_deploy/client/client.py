"""A typed client of the service, sync and async, with retries and batches.

    with Client("http://localhost:3000") as client:
        client.classify(Path("image.jpg"), "digits").label

What may pass is asked again, not before the service says so: connections that break, 503 with Retry-After, and 429.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity

from mosa_deploy.client import requests
from mosa_deploy.client.requests import Answer, ApiRequest, Failure, Picture, Prediction, Task
from mosa_deploy.errors import ServiceError

__all__ = ["Answer", "AsyncClient", "Client", "Failure", "Picture", "Prediction", "Task"]

T = TypeVar("T")

BATCH = 16
"""Images of one request."""


def should_retry(outcome: tenacity.RetryCallState) -> bool:
    """Whether it is worth asking again."""
    assert outcome.outcome is not None
    fault = outcome.outcome.exception()
    if fault is not None:
        return isinstance(fault, httpx.TransportError)
    response: httpx.Response = outcome.outcome.result()
    return response.status_code == 429 or (response.status_code == 503 and "retry-after" in response.headers)


def retry_delay(outcome: tenacity.RetryCallState) -> float:
    """What the service asks for, or a little more each time, spread so that clients do not come back together."""
    assert outcome.outcome is not None
    spread = float(tenacity.wait_random_exponential(multiplier=0.1, max=5)(outcome))
    if outcome.outcome.exception() is not None:
        return spread
    asked = str(outcome.outcome.result().headers.get("retry-after", ""))
    return spread + (float(asked) if asked.isdigit() else 0)


def last_outcome(outcome: tenacity.RetryCallState) -> Any:
    """What the last attempt brought: a response, or its exception."""
    assert outcome.outcome is not None
    return outcome.outcome.result()


def read(request: ApiRequest[T], response: httpx.Response) -> T:
    """What a response says.

    Raises:
        ServiceError: what the service says is wrong.
    """
    if response.is_success:
        return request.read(response.json() if response.content else None)
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    raise ServiceError(response.status_code, detail if isinstance(detail, str) else str(detail))


def unreachable(fault: httpx.TransportError) -> ServiceError:
    """No response came."""
    said = fault if str(fault) else type(fault).__name__
    return ServiceError(0, f"the service does not answer ({said}): is it running at that address?")


def _connection(address: str, key: str | None, timeout: float) -> dict[str, Any]:
    key = key or os.environ.get("MOSA_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": address, "headers": headers, "timeout": timeout, "trust_env": False}


def _retrying(attempts: int) -> dict[str, Any]:
    return {
        "retry": should_retry,
        "wait": retry_delay,
        "stop": tenacity.stop_after_attempt(attempts),
        "retry_error_callback": last_outcome,
    }


class Client:
    """Asks a service. `key` is an API key or, for changes, an admin's; MOSA_KEY if None."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.Client(**_connection(address, key, timeout))
        self._send: Callable[..., httpx.Response] = tenacity.Retrying(**_retrying(attempts)).wraps(self._http.request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _ask(self, request: ApiRequest[T]) -> T:
        try:
            response = self._send(request.method, request.path, **request.options)
        except httpx.TransportError as fault:
            raise unreachable(fault) from None
        return read(request, response)

    def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """One image by one task.

        Raises:
            ServiceError: there is no answer.
        """
        return self._ask(requests.classify(picture, task, top_k))

    def classify_many(
        self, asked: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> Iterator[Answer | Failure]:
        """Images, each with its task, a few a request; results in their order."""
        for request in requests.classify_many(asked, top_k, batch):
            yield from self._ask(request)

    def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """One image by several tasks."""
        return self._ask(requests.classify_by(picture, tasks, top_k))

    def tasks(self) -> list[Task]:
        """Every task."""
        return self._ask(requests.tasks())

    def task(self, name: str) -> Task:
        """One task."""
        return self._ask(requests.task(name))

    def put(self, name: str, bundle: Picture, new_classes: bool = False, lane: str | None = None) -> Task:
        """Serve a `.mosa` file, or the bundle of a folder, as a task's new version."""
        return self._ask(requests.put(name, bundle, new_classes, lane))

    def remove(self, name: str) -> None:
        """Stop serving a task."""
        self._ask(requests.remove(name))

    def roll_back(self, name: str) -> Task:
        """Serve the version before."""
        return self._ask(requests.roll_back(name))

    def pin(self, name: str, pinned: bool = True) -> Task:
        """Keep a task loaded, or no longer."""
        return self._ask(requests.pin(name, pinned))


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.AsyncClient(**_connection(address, key, timeout))
        retrying = tenacity.AsyncRetrying(**_retrying(attempts))
        self._send: Callable[..., Awaitable[httpx.Response]] = retrying.wraps(self._http.request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _ask(self, request: ApiRequest[T]) -> T:
        try:
            response = await self._send(request.method, request.path, **request.options)
        except httpx.TransportError as fault:
            raise unreachable(fault) from None
        return read(request, response)

    async def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """See `Client.classify`."""
        return await self._ask(requests.classify(picture, task, top_k))

    async def classify_many(
        self, asked: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> list[Answer | Failure]:
        """See `Client.classify_many`; all results at once."""
        return [each for request in requests.classify_many(asked, top_k, batch) for each in await self._ask(request)]

    async def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """See `Client.classify_by`."""
        return await self._ask(requests.classify_by(picture, tasks, top_k))

    async def tasks(self) -> list[Task]:
        """See `Client.tasks`."""
        return await self._ask(requests.tasks())

    async def task(self, name: str) -> Task:
        """See `Client.task`."""
        return await self._ask(requests.task(name))

    async def put(self, name: str, bundle: Picture, new_classes: bool = False, lane: str | None = None) -> Task:
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
