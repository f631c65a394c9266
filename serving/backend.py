"""The backend: what the HTTP side asks of the inference side.

It is in this process (`serving.local_backend`) or in another one (`serving.remote_backend`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import ChosenLane, Task, Versions
from serving.errors import RequestError


@dataclass(frozen=True)
class Lease:
    """A version of a task that a request holds: it can answer even if the task is changed meanwhile."""

    task: str
    digest: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    lane: str
    handle: Any
    """For the backend that made the lease."""
    thresholds: tuple[float, ...] | None = None
    """Those of its labels, if an image may have several."""
    backbone: str = ""
    """The name of its backbone's folder in the store."""


@dataclass(frozen=True)
class Answered:
    """Calibrated probabilities (K,), and how they were computed."""

    probabilities: Array
    waited: float
    """Seconds in the queue."""
    ran: float
    """Seconds in the graph."""
    batch: int
    """The number of images that ran together."""
    unknown: float | None = None
    """How unknown the image is to the task, if that was asked for and can be told."""
    note: str | None = None
    """Why that cannot be told."""


@dataclass(frozen=True)
class Embedded:
    """The features (F,) of an image, and how they were computed, as in `Answered`."""

    features: Array
    waited: float
    ran: float
    batch: int


Outcome = Answered | RequestError


@dataclass(frozen=True)
class Health:
    """Whether the backend works."""

    alive: bool
    """False if only a restart of the process helps."""
    ready: bool
    """Whether it can answer now."""


@dataclass(frozen=True)
class PutOptions:
    """What the sender of a new version wants."""

    new_classes: bool = False
    """Serve it although its classes are not those of the version before."""
    lane: ChosenLane | None = None
    """How it is served from now on."""
    margin: float | None = None
    """By how much its accuracy on labelled images may be lower; None is the setting."""
    force: bool = False
    """Serve it although its accuracy on labelled images is lower, or too few tell it."""


class Backend(Protocol):
    """The inference side. Every method may raise RequestError."""

    async def lease(self, tasks: Sequence[str], seconds: float, plain: bool = False) -> dict[str, Lease | RequestError]:
        """Hold the current versions of a request's tasks, and load those that are not loaded, within `seconds`.

        With `plain` the names are those of backbones, and each lease is of a task on it; an empty name means the only
        one.
        """
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give back all leases of a request that ends."""
        ...

    async def infer(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, unknown: bool = False
    ) -> list[Outcome]:
        """Classify images (H, W, 3), each by a lease of the same request: one outcome each, within `seconds`.

        With `unknown` the outcomes say how unknown the images are.
        """
        ...

    async def embed(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, plain: bool = False
    ) -> list[Embedded | RequestError]:
        """The features of images, by the same rules: those that the task's head reads, or the plain backbone's."""
        ...

    async def tasks(self) -> list[Task]:
        """Every task of the store."""
        ...

    async def task(self, name: str) -> Task:
        """One task."""
        ...

    async def put(self, name: str, content: bytes, options: PutOptions) -> Task:
        """Serve a new version."""
        ...

    async def remove(self, name: str, force: bool) -> None:
        """Stop serving a task, a pinned one only by `force`."""
        ...

    async def versions(self, name: str) -> Versions:
        """The versions of a task that are kept."""
        ...

    async def rollback(self, name: str, digest: str | None, new_classes: bool) -> Task:
        """Serve the previous version, or the one whose digest begins so."""
        ...

    async def pin(self, name: str, pinned: bool) -> Task:
        """Keep a task loaded, or let it be evicted again."""
        ...

    async def health(self) -> Health:
        """Whether the backend is alive and ready."""
        ...

    async def close(self) -> None:
        """Finish everything that is queued, and stop."""
        ...
