"""Carry out the command lines of a task on a Ray cluster: one Ray task per task, on storage that all nodes share.

Each starts the same process as a fleet on one machine does. Ray repeats nothing by itself: a task that was begun goes
on by another command line, so it is planned anew, from the files that it left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mosa_deploy.utils.ray_cluster import Needs, connected, prepare
from training.fleet.crew import Start
from training.fleet.process import End, Line, Process, ends_there
from training.fleet.stages import DEPLOY

PACKAGES = ("torch", "timm", "onnx", "onnxruntime")
"""What the command lines need beside this package."""


@contextmanager
def on_ray(address: str, gpus: float | None, folders: Sequence[Path], inputs: Sequence[Path]) -> Iterator[Start]:
    """Connect to a cluster, whose nodes have been found to see the folders that are written to and what is read.

    Raises:
        ProviderError: Ray is not installed.
        ConfigError: there is no such cluster, or its nodes lack something.
    """
    with connected(address) as ray:
        needs = Needs.of(folders, inputs, PACKAGES)
        prepare(ray, needs)
        yield Cluster(ray, needs, gpus or 0.0).start


class Cluster:
    """Begins to carry out command lines on a cluster, each task with one core and perhaps a share of a GPU."""

    def __init__(self, ray: Any, needs: Needs, gpus: float) -> None:
        self.ray, self.needs = ray, needs
        self._ends_there = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(ends_there)

    def start(self, lines: Sequence[Line], log: Path) -> "RayTask":
        """Begin to carry them out, on whatever node has a core."""
        there = list(takewhile(lambda line: line[0] != DEPLOY, lines))
        stream = self._ends_there.remote(self.needs, there, log) if there else None
        return RayTask(self.ray, stream, there, lines[len(there) :], log)


class RayTask:
    """Carries out command lines there, and those of a deployment here; see `Running`.

    A node has no key of the service, and `localhost` is another machine for it.
    """

    def __init__(self, ray: Any, stream: Any, there: Sequence[Line], here: Sequence[Line], log: Path) -> None:
        self.ray, self.stream, self.there, self.here, self.log = ray, stream, there, here, log
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()

    def ends(self) -> Iterator[End]:
        """Wait for each command line."""
        for end in self._ends_there():
            yield end
            if end.fault:
                return
        if self.here:
            with Process(self.here, self.log) as self._process:
                yield from self._process.ends()

    def _ends_there(self) -> Iterator[End]:
        done = 0
        try:
            for answer in self.stream or ():
                yield self.ray.get(answer)
                done += 1
        except self.ray.exceptions.RayError as error:
            own = isinstance(error, self.ray.exceptions.RayTaskError)
            reason = str(error).strip().splitlines()[-1 if own else 0] if str(error).strip() else type(error).__name__
            fault = reason if own else f"its process or its node was lost ({reason:.200})"
            yield from (End(line, None, fault, lost=not own) for line in self.there[done : done + 1])

    def kill(self) -> None:
        """End them."""
        if self.stream is not None:
            self.ray.cancel(self.stream, force=True)
        if self._process is not None:
            self._process.kill()
