"""Images on their way through a lane's graph, and what a lane is to the batcher."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess


@dataclass(frozen=True)
class Streams:
    """Batches of one lane that run at the same time, each on its share of the cores, so that none waits for another."""

    count: int
    sizes: tuple[int, ...]
    """Those that each takes, ascending."""


class Lane(Protocol):
    """One graph."""

    @property
    def kind(self) -> str:
        """Its name in answers and metrics."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that it takes, ascending."""
        ...

    @property
    def padding(self) -> float:
        """The share of a batch that may be padding when a smaller batch would need less."""
        ...

    @property
    def streams(self) -> Streams | None:
        """The batches that it runs at the same time; None if it runs one on all cores."""
        ...

    def device_lost(self) -> bool:
        """Whether its device no longer works in this process. Asked when a run has failed."""
        ...

    def run(self, items: Sequence["Item"], size: int, stream: bool = False) -> Array:
        """Run n <= `size` items as a batch of `size`, on all cores or in a `stream`; returns the outputs (n, ...)."""
        ...


@dataclass(eq=False)
class Item:
    """An image (H, W, 3) to run through a lane. `future` becomes its output."""

    lane: Lane
    pixels: Pixels
    preprocess: Preprocess
    slot: int
    deadline: float
    """On the clock of `time.monotonic`."""
    future: "Future[Array]" = field(default_factory=Future)
    entered: float = field(default_factory=time.monotonic)
    trace: object | None = None
    """What `serving.spans` knows its request by, if that is traced."""
    ready: float = 0.0
    """When the input of its batch was ready; lanes note it on the first item of a batch."""
    batch: "BatchRun | None" = None
    """Its batch, once that has run."""


@dataclass(frozen=True, eq=False)
class BatchRun:
    """A batch that ran. Its times are on the clock of `time.monotonic`."""

    images: int
    size: int
    """With the padding."""
    start: float
    ready: float
    """When its input was ready."""
    end: float
    traces: tuple[object, ...]
    """Those of its items."""

    @property
    def seconds(self) -> float:
        """Seconds in the graph, its input included."""
        return self.end - self.start
