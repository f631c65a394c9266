"""A typed client of the service, sync and async, with retries and batches.

    with Client("http://localhost:3000") as client:
        client.classify("image.jpg", "digits").label

Requests that failed for a temporary reason are retried, and not before the service says so.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
import tenacity

from mosa_deploy.client import requests
from mosa_deploy.client.address import service_url
from mosa_deploy.client.embeddings import Embedding
from mosa_deploy.client.requests import AnswerOptions, ApiRequest, Picture
from mosa_deploy.client.retries import Attempts, read_response, retrying, unreachable
from mosa_deploy.client.schema import Answer, ChosenLane, Failure, Task, TaskVersion
from mosa_deploy.errors import ConfigError, ServiceError
from mosa_deploy.utils.files import Content

T = TypeVar("T")

BATCH = 16
"""Images per request."""


def _connection(address: str, key: str | None, timeout: float) -> dict[str, Any]:
    """The arguments of httpx's clients, sync and async.

    Raises:
        ConfigError: the address or the key cannot be used.
    """
    url = service_url(address)
    key = key or os.environ.get("MOSA_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("the key holds characters that HTTP cannot send: does it end with a line break?")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": False}


class Client:
    """Sends requests to a service. `key` is an API key or, for changes, an admin's; None takes MOSA_KEY.

    Every method may raise ServiceError for what the service refuses, and DataError for a file that cannot be read.
    """

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.Client(**_connection(address, key, timeout))
        self._send: Callable[[ApiRequest[Any], Attempts], httpx.Response]
        self._send = tenacity.Retrying(**retrying(attempts)).wraps(self._send_once)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _send_once(self, request: ApiRequest[Any], _: Attempts) -> httpx.Response:
        return self._http.request(request.method, request.path, **request.options)

    def _ask(self, request: ApiRequest[T]) -> T:
        attempts = Attempts()
        try:
            response = self._send(request, attempts)
        except httpx.TransportError as fault:
            raise unreachable(request, fault) from None
        return read_response(request, response, attempts)

    def classify(
        self, picture: Picture, task: str, top_k: int | None = None, **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Classify one image, given by its bytes or its path, by one task.

        It answers the `top_k` likeliest classes, 5 if None. A task with several labels per image answers all labels
        that reach their own thresholds, or `threshold` in their place; of these at most `top_k`.
        With `unknown=True` the answer says how unknown the image is to the task, from 0 to 1. With `abstain=0.99` it
        lists no class if that is above 0.99. The other methods that classify take the same.

        Raises:
            DataError: the file cannot be read.
            ServiceError: there is no answer.
        """
        return self._ask(requests.classify(picture, task, top_k, **options))

    def classify_many(
        self,
        pairs: Iterable[tuple[Picture, str]],
        top_k: int | None = None,
        batch: int = BATCH,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[Answer | Failure]:
        """Classify images, each by its own task, `batch` per request; yield the results in the same order."""
        for request in requests.classify_many(pairs, top_k, batch, **options):
            yield from self._ask(request)

    def classify_by(
        self,
        picture: Picture,
        tasks: Sequence[str],
        top_k: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> list[Answer | Failure]:
        """Classify one image by several tasks; one result per task."""
        return self._ask(requests.classify_by(picture, tasks, top_k, **options))

    def embed(
        self, picture: Picture, task: str | None = None, backbone: str | None = None, normalise: bool = False
    ) -> Embedding:
        """The features of one image: a task's own, or without a task those of the plain backbone.

        `backbone` names it if the service has several. With `normalise` they are divided by their Euclidean norm.

        Raises:
            DataError: the file cannot be read.
            ServiceError: there is no answer.
        """
        (found,) = self.embed_many([picture], task, backbone, normalise)
        if isinstance(found, Failure):
            raise ServiceError(found.status, found.detail)
        return found

    def embed_many(
        self,
        pictures: Iterable[Picture],
        task: str | None = None,
        backbone: str | None = None,
        normalise: bool = False,
        batch: int = BATCH,
    ) -> Iterator[Embedding | Failure]:
        """The features of images, `batch` per request; yield the results in the same order."""
        for request in requests.embed_many(pictures, task, backbone, normalise, batch):
            yield from self._ask(request)

    def tasks(self) -> list[Task]:
        """List every task."""
        return self._ask(requests.tasks())

    def task(self, name: str) -> Task:
        """Describe one task."""
        return self._ask(requests.task(name))

    def put(
        self,
        name: str,
        bundle: Content,
        new_classes: bool = False,
        lane: ChosenLane | None = None,
        margin: float | None = None,
        force: bool = False,
    ) -> Task:
        """Serve a `.mosa` file, or the bundle in a folder, as a task's new version.

        Its accuracy on labelled images may be lower by `margin`; `force` serves it whatever they say.

        Raises:
            BundleError: the folder holds no whole bundle.
            DataError: the file cannot be read.
            ServiceError: the service refuses the bundle.
        """
        return self._ask(requests.put(name, bundle, new_classes, lane, margin, force))

    def remove(self, name: str, force: bool = False) -> None:
        """Stop serving a task, a pinned one only by `force`."""
        self._ask(requests.remove(name, force))

    def versions(self, name: str) -> list[TaskVersion]:
        """List the versions of a task that the service keeps, the newest first."""
        return self._ask(requests.versions(name))

    def roll_back(self, name: str, digest: str | None = None, new_classes: bool = False) -> Task:
        """Serve the previous version, or the one whose digest begins so. Other classes need `new_classes`."""
        return self._ask(requests.roll_back(name, digest, new_classes))

    def pin(self, name: str, pinned: bool = True) -> Task:
        """Keep a task loaded, or stop keeping it."""
        return self._ask(requests.pin(name, pinned))


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.AsyncClient(**_connection(address, key, timeout))
        self._send: Callable[[ApiRequest[Any], Attempts], Awaitable[httpx.Response]]
        self._send = tenacity.AsyncRetrying(**retrying(attempts)).wraps(self._send_once)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _send_once(self, request: ApiRequest[Any], _: Attempts) -> httpx.Response:
        return await self._http.request(request.method, request.path, **request.options)

    async def _ask(self, request: ApiRequest[T]) -> T:
        attempts = Attempts()
        try:
            response = await self._send(request, attempts)
        except httpx.TransportError as fault:
            raise unreachable(request, fault) from None
        return read_response(request, response, attempts)

    async def classify(
        self, picture: Picture, task: str, top_k: int | None = None, **options: Unpack[AnswerOptions]
    ) -> Answer:
        """See `Client.classify`."""
        return await self._ask(requests.classify(picture, task, top_k, **options))

    async def classify_many(
        self,
        pairs: Iterable[tuple[Picture, str]],
        top_k: int | None = None,
        batch: int = BATCH,
        **options: Unpack[AnswerOptions],
    ) -> list[Answer | Failure]:
        """See `Client.classify_many`; returns all results at once."""
        return [
            each
            for request in requests.classify_many(pairs, top_k, batch, **options)
            for each in await self._ask(request)
        ]

    async def classify_by(
        self,
        picture: Picture,
        tasks: Sequence[str],
        top_k: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> list[Answer | Failure]:
        """See `Client.classify_by`."""
        return await self._ask(requests.classify_by(picture, tasks, top_k, **options))

    async def embed(
        self, picture: Picture, task: str | None = None, backbone: str | None = None, normalise: bool = False
    ) -> Embedding:
        """See `Client.embed`."""
        (found,) = await self.embed_many([picture], task, backbone, normalise)
        if isinstance(found, Failure):
            raise ServiceError(found.status, found.detail)
        return found

    async def embed_many(
        self,
        pictures: Iterable[Picture],
        task: str | None = None,
        backbone: str | None = None,
        normalise: bool = False,
        batch: int = BATCH,
    ) -> list[Embedding | Failure]:
        """See `Client.embed_many`; returns all results at once."""
        made = requests.embed_many(pictures, task, backbone, normalise, batch)
        return [each for request in made for each in await self._ask(request)]

    async def tasks(self) -> list[Task]:
        """See `Client.tasks`."""
        return await self._ask(requests.tasks())

    async def task(self, name: str) -> Task:
        """See `Client.task`."""
        return await self._ask(requests.task(name))

    async def put(
        self,
        name: str,
        bundle: Content,
        new_classes: bool = False,
        lane: ChosenLane | None = None,
        margin: float | None = None,
        force: bool = False,
    ) -> Task:
        """See `Client.put`."""
        return await self._ask(requests.put(name, bundle, new_classes, lane, margin, force))

    async def remove(self, name: str, force: bool = False) -> None:
        """See `Client.remove`."""
        await self._ask(requests.remove(name, force))

    async def versions(self, name: str) -> list[TaskVersion]:
        """See `Client.versions`."""
        return await self._ask(requests.versions(name))

    async def roll_back(self, name: str, digest: str | None = None, new_classes: bool = False) -> Task:
        """See `Client.roll_back`."""
        return await self._ask(requests.roll_back(name, digest, new_classes))

    async def pin(self, name: str, pinned: bool = True) -> Task:
        """See `Client.pin`."""
        return await self._ask(requests.pin(name, pinned))
