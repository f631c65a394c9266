"""What the HTTP side asks of the inference side.

The inference side is in this process (`serving.local_backend`) or in another one (`serving.remote_backend`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import Task
from serving.errors import RequestError
from serving.store import LaneName


@dataclass(frozen=True)
class Lease:
    """A version of a task that a request holds: it answers whatever is changed meanwhile."""

    task: str
    digest: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    lane: str
    handle: Any
    """The inference side's own."""


@dataclass(frozen=True)
class Answered:
    """Calibrated probabilities (K,) and how they came about."""

    probabilities: Array
    waited: float
    ran: float
    batch: int


Outcome = Answered | RequestError


@dataclass(frozen=True)
class Health:
    """Whether the inference side works."""

    alive: bool
    ready: bool


class Backend(Protocol):
    """The inference side. Everything may raise RequestError."""

    async def lease(self, tasks: Sequence[str], seconds: float) -> dict[str, Lease | RequestError]:
        """Hold the versions of a request's tasks that answer now, loading them if need be."""
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """The request ends; these are all that it got."""
        ...

    async def infer(self, asked: Sequence[tuple[Lease, Pixels]], seconds: float) -> list[Outcome]:
        """Images (H, W, 3), each for a lease of one request -> an outcome each, within so many seconds."""
        ...

    async def tasks(self) -> list[Task]:
        """Every task."""
        ...

    async def task(self, name: str) -> Task:
        """One task."""
        ...

    async def put(self, name: str, content: bytes, new_classes: bool, lane: LaneName | None) -> Task:
        """Serve a new version."""
        ...

    async def remove(self, name: str) -> None:
        """Stop serving a task."""
        ...

    async def rollback(self, name: str) -> Task:
        """Serve the version before."""
        ...

    async def pin(self, name: str, pinned: bool) -> Task:
        """Keep a task loaded, or no longer."""
        ...

    async def health(self) -> Health:
        """How it is."""
        ...

    async def close(self) -> None:
        """Finish what is queued, and stop."""
        ...
