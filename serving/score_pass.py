"""Answer the images of one shard after the other, and write the answers: what every process of `mosa score` does."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from serving.score_decode import Chunk, Decoders, Reading
from serving.score_options import ScoreConfig
from serving.score_output import Answers, RunFolder
from serving.score_shards import LeftOut, Shard
from serving.score_tasks import Asked, TaskSet
from serving.settings import Settings

Progress = Callable[[int], object]
"""Is told how many images more are done."""


class Fault(NamedTuple):
    """Why a shard has no answers."""

    file: str
    """Where they would have been written."""
    reason: str
    lost: bool
    """Whether processes died on it: nothing else is known to be wrong with it."""

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}" if self.lost else self.reason


@dataclass(frozen=True)
class Scorer:
    """The tasks, the processes that decode for them, and where answers go."""

    tasks: TaskSet
    decoders: Decoders
    out: RunFolder
    top_k: int | None

    def score(self, shard: Shard, left: LeftOut, progress: Progress) -> None:
        """Write a shard's file; what lies beside its images is added to `left`.

        Raises:
            DataError: it cannot be read to its end.
            LostError: processes that decode its images died.
        """
        with self.out.writing(shard, self.top_k) as answers:
            self._score_chunks(self.decoders.decoded(shard.images(left)), answers, progress)

    def _score_chunks(self, chunks: Iterable[Chunk], answers: Answers, progress: Progress) -> None:
        """Write the answers to a shard's images. The next chunks are asked first, so that the graph never waits."""
        waiting: deque[tuple[list[str], Asked]] = deque()

        def write_first() -> None:
            names, asked = waiting.popleft()
            for task, scores in self.tasks.answers(asked):
                answers.add(task.version.record, names, scores)
            progress(len(names))

        for chunk in chunks:
            answers.images += len(chunk.names) + len(chunk.faults)
            answers.unreadable += chunk.faults
            progress(len(chunk.faults))
            if chunk.names:
                waiting.append((chunk.names, self.tasks.ask(chunk.pixels)))
            if len(waiting) > self.tasks.ahead:
                write_first()
        while waiting:
            write_first()


@contextmanager
def scorer(config: ScoreConfig, settings: Settings, tasks: TaskSet, out: RunFolder) -> Iterator[Scorer]:
    """Start the processes that decode for these tasks."""
    reading = Reading(tasks.preprocesses, settings.max_pixels)
    with Decoders(config.decoders, reading, settings.largest_batch) as decoders:
        yield Scorer(tasks, decoders, out, config.top_k)
