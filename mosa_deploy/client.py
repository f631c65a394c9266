"""A typed client of the service, sync and async, with retries and batches.

    with Client("http://localhost:3000") as client:
        client.classify(Path("image.jpg"), "digits").label

What may pass is asked again, not before the service says so: connections that break, 503 with Retry-After, and 429.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import tenacity

from mosa_deploy.errors import ServiceError

Picture = bytes | Path
"""An encoded image, or the path of its file."""

BATCH = 16
"""Images of one request."""


@dataclass(frozen=True)
class Prediction:
    """One class with its calibrated probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Answer:
    """What a task says of an image, likeliest first; `bundle` is the digest of the version that said it."""

    task: str
    predictions: tuple[Prediction, ...]
    bundle: str
    milliseconds: float

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.predictions[0].label


@dataclass(frozen=True)
class Failure:
    """Why an image has no answer; `status` is HTTP's."""

    task: str
    status: int
    detail: str


@dataclass(frozen=True)
class Task:
    """A task as the service has it."""

    task: str
    classes: tuple[str, ...]
    backbone: str
    method: str
    bundle: str
    lane: Literal["shared", "folded"]
    state: Literal["active", "registered", "refused"]
    pinned: bool
    can_roll_back: bool
    reason: str | None


@dataclass(frozen=True)
class Request:
    """One HTTP request and how to read its answer; both clients send the same ones."""

    method: str
    path: str
    options: Mapping[str, Any]


def classify_request(pictures: Sequence[Picture], tasks: Sequence[str], top_k: int) -> Request:
    """Images, each with its task."""
    files = [("image", _file(picture)) for picture in pictures]
    return Request("POST", "/classify", {"files": files, "data": {"task": list(tasks), "top_k": top_k}})


def several_request(picture: Picture, tasks: Sequence[str], top_k: int) -> Request:
    """One image for several tasks."""
    data = {"tasks": ",".join(tasks), "top_k": top_k}
    return Request("POST", "/classify", {"files": [("image", _file(picture))], "data": data})


def put_request(name: str, bundle: Picture, new_classes: bool, lane: str | None) -> Request:
    """A `.mosa` file, or a folder's bundle."""
    params = {"new_classes": new_classes} | ({"lane": lane} if lane else {})
    return Request("PUT", f"/v1/tasks/{name}", {"content": _mosa(bundle), "params": params})


def _file(picture: Picture) -> tuple[str, bytes]:
    return (picture.name, picture.read_bytes()) if isinstance(picture, Path) else ("image", picture)


def _mosa(bundle: Picture) -> bytes:
    if isinstance(bundle, Path) and bundle.is_dir():
        from mosa_deploy.archive import Archive

        return Archive.of(bundle).pack()
    return bundle.read_bytes() if isinstance(bundle, Path) else bundle


def read_answer(fields: Mapping[str, Any]) -> Answer | Failure:
    """A result of the service."""
    if "predictions" not in fields:
        return Failure(fields["task"], fields["status"], fields["detail"])
    predictions = tuple(Prediction(each["label"], each["score"]) for each in fields["predictions"])
    return Answer(fields["task"], predictions, fields["bundle"], fields["milliseconds"])


def read_answers(fields: Mapping[str, Any]) -> list[Answer | Failure]:
    """The results of several, or of one."""
    return [read_answer(each) for each in fields.get("results", [fields])]


def read_task(fields: Mapping[str, Any]) -> Task:
    """A task of the service."""
    return Task(**{**fields, "classes": tuple(fields["classes"])})


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if it is a success.

    Raises:
        ServiceError: what the service says is wrong.
    """
    if response.is_success:
        return response
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    raise ServiceError(response.status_code, detail if isinstance(detail, str) else str(detail))


def may_pass(outcome: tenacity.RetryCallState) -> bool:
    """Whether it is worth asking again."""
    assert outcome.outcome is not None
    fault = outcome.outcome.exception()
    if fault is not None:
        return isinstance(fault, httpx.TransportError)
    response: httpx.Response = outcome.outcome.result()
    return response.status_code == 429 or (response.status_code == 503 and "retry-after" in response.headers)


def pause(outcome: tenacity.RetryCallState) -> float:
    """What the service asks for, or a little more each time, spread so that clients do not come back together."""
    assert outcome.outcome is not None
    spread = float(tenacity.wait_random_exponential(multiplier=0.1, max=5)(outcome))
    if outcome.outcome.exception() is not None:
        return spread
    asked = str(outcome.outcome.result().headers.get("retry-after", ""))
    return spread + (float(asked) if asked.isdigit() else 0)


def last(outcome: tenacity.RetryCallState) -> Any:
    """What the last attempt brought: a response, or its exception."""
    assert outcome.outcome is not None
    return outcome.outcome.result()


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _retrying(attempts: int) -> dict[str, Any]:
    return {
        "retry": may_pass,
        "wait": pause,
        "stop": tenacity.stop_after_attempt(attempts),
        "retry_error_callback": last,
    }


def _parts(asked: Iterable[tuple[Picture, str]], size: int) -> Iterator[tuple[list[Picture], list[str]]]:
    left = iter(asked)
    while part := list(islice(left, size)):
        yield [picture for picture, _ in part], [task for _, task in part]


class Client:
    """Asks a service. `key` is an API key or, for changes, an admin's; MOSA_KEY if None."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.Client(
            base_url=address, headers=_headers(key or os.environ.get("MOSA_KEY")), timeout=timeout, trust_env=False
        )
        self._send: Callable[[Request], httpx.Response] = tenacity.Retrying(**_retrying(attempts)).wraps(self._once)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _once(self, request: Request) -> httpx.Response:
        return self._http.request(request.method, request.path, **request.options)

    def _ask(self, request: Request) -> Any:
        response = checked(_reached(self._send, request))
        return response.json() if response.content else None

    def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """One image by one task.

        Raises:
            ServiceError: there is no answer.
        """
        answer = read_answer(self._ask(classify_request([picture], [task], top_k)))
        assert isinstance(answer, Answer)
        return answer

    def classify_many(
        self, asked: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> Iterator[Answer | Failure]:
        """Images, each with its task, a few a request; results in their order."""
        for pictures, tasks in _parts(asked, batch):
            yield from read_answers(self._ask(classify_request(pictures, tasks, top_k)))

    def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """One image by several tasks."""
        return read_answers(self._ask(several_request(picture, tasks, top_k)))

    def tasks(self) -> list[Task]:
        """Every task."""
        return [read_task(each) for each in self._ask(Request("GET", "/v1/tasks", {}))["tasks"]]

    def task(self, name: str) -> Task:
        """One task."""
        return read_task(self._ask(Request("GET", f"/v1/tasks/{name}", {})))

    def put(self, name: str, bundle: Picture, new_classes: bool = False, lane: str | None = None) -> Task:
        """Serve a `.mosa` file, or the bundle of a folder, as a task's new version."""
        return read_task(self._ask(put_request(name, bundle, new_classes, lane)))

    def remove(self, name: str) -> None:
        """Stop serving a task."""
        self._ask(Request("DELETE", f"/v1/tasks/{name}", {}))

    def roll_back(self, name: str) -> Task:
        """Serve the version before."""
        return read_task(self._ask(Request("POST", f"/v1/tasks/{name}/rollback", {})))

    def pin(self, name: str, pinned: bool = True) -> Task:
        """Keep a task loaded, or no longer."""
        return read_task(self._ask(Request("POST", f"/v1/tasks/{name}/pin", {"json": {"pinned": pinned}})))


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(self, address: str, key: str | None = None, timeout: float = 60, attempts: int = 5) -> None:
        self._http = httpx.AsyncClient(
            base_url=address, headers=_headers(key or os.environ.get("MOSA_KEY")), timeout=timeout, trust_env=False
        )
        self._send: Callable[[Request], Awaitable[httpx.Response]] = tenacity.AsyncRetrying(
            **_retrying(attempts)
        ).wraps(self._once)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _once(self, request: Request) -> httpx.Response:
        return await self._http.request(request.method, request.path, **request.options)

    async def _ask(self, request: Request) -> Any:
        try:
            response = checked(await self._send(request))
        except httpx.TransportError as fault:
            raise ServiceError(0, _unreachable(fault)) from None
        return response.json() if response.content else None

    async def classify(self, picture: Picture, task: str, top_k: int = 5) -> Answer:
        """See `Client.classify`."""
        answer = read_answer(await self._ask(classify_request([picture], [task], top_k)))
        assert isinstance(answer, Answer)
        return answer

    async def classify_many(
        self, asked: Iterable[tuple[Picture, str]], top_k: int = 5, batch: int = BATCH
    ) -> list[Answer | Failure]:
        """See `Client.classify_many`; all results at once."""
        results: list[Answer | Failure] = []
        for pictures, tasks in _parts(asked, batch):
            results += read_answers(await self._ask(classify_request(pictures, tasks, top_k)))
        return results

    async def classify_by(self, picture: Picture, tasks: Sequence[str], top_k: int = 5) -> list[Answer | Failure]:
        """See `Client.classify_by`."""
        return read_answers(await self._ask(several_request(picture, tasks, top_k)))

    async def tasks(self) -> list[Task]:
        """See `Client.tasks`."""
        return [read_task(each) for each in (await self._ask(Request("GET", "/v1/tasks", {})))["tasks"]]

    async def task(self, name: str) -> Task:
        """See `Client.task`."""
        return read_task(await self._ask(Request("GET", f"/v1/tasks/{name}", {})))

    async def put(self, name: str, bundle: Picture, new_classes: bool = False, lane: str | None = None) -> Task:
        """See `Client.put`."""
        return read_task(await self._ask(put_request(name, bundle, new_classes, lane)))

    async def remove(self, name: str) -> None:
        """See `Client.remove`."""
        await self._ask(Request("DELETE", f"/v1/tasks/{name}", {}))

    async def roll_back(self, name: str) -> Task:
        """See `Client.roll_back`."""
        return read_task(await self._ask(Request("POST", f"/v1/tasks/{name}/rollback", {})))

    async def pin(self, name: str, pinned: bool = True) -> Task:
        """See `Client.pin`."""
        return read_task(await self._ask(Request("POST", f"/v1/tasks/{name}/pin", {"json": {"pinned": pinned}})))


def _reached(send: Callable[[Request], httpx.Response], request: Request) -> httpx.Response:
    try:
        return send(request)
    except httpx.TransportError as fault:
        raise ServiceError(0, _unreachable(fault)) from None


def _unreachable(fault: httpx.TransportError) -> str:
    return f"the service does not answer ({fault or type(fault).__name__}): is it running at that address?"
