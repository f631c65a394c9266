"""Where the work of a crew is done: in processes of this machine, or on a Ray cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.fleet.crew import Crew
from training.fleet.forks import ForkServer
from training.fleet.on_ray import on_ray


@dataclass(frozen=True)
class Place:
    """This machine, or the cluster whose address is in `ray`."""

    ray: str | None
    gpus: float | None
    """GPUs for each task on the cluster."""
    folders: Sequence[Path]
    """What is written to, which every node has to see."""
    inputs: Sequence[Path]
    """What is read, likewise."""

    @contextmanager
    def crew(self, jobs: int, threads: int = 1) -> Iterator[Crew]:
        """A crew for `jobs` tasks at a time; on this machine each has so many threads.

        Raises:
            MosaError: there is no such cluster, or its nodes lack something.
        """
        if self.ray is None:
            with ForkServer(threads) as server:
                yield Crew(jobs, server.start)
        else:
            with on_ray(self.ray, self.gpus, self.folders, self.inputs) as start:
                yield Crew(jobs, start)
