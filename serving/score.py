"""Answer every task for every image of an archive, into Parquet files: `mosa score`.

    shards -> encoded images -> pixels, by processes -> graphs, one thread -> rows -> one file per shard

Each arrow holds a few chunks of images, so memory does not grow with the archive. A shard is finished when its file is
renamed into its place: a run that was killed goes on after the last finished shard with the same command.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mosa_deploy import __version__
from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.processes import cores
from serving.score_decode import Chunk, Decoders, Reading
from serving.score_output import UNREADABLE, Answers, Manifest, RunFolder, TaskPlan
from serving.score_shards import LeftOut, Shard, find_shards
from serving.score_tasks import Asked, TaskSet, opened
from serving.settings import Settings

WORKERS = 8
"""The most processes that decode images, unless more are asked for."""
ASKED = 2
"""Chunks of images that are asked before the first of them is written, so that the graph never waits."""


@dataclass(frozen=True)
class ScoreConfig:
    """What `mosa score` is asked for."""

    store: str
    """A folder, or a URL of fsspec."""
    tasks: Sequence[str]
    images: str
    """A folder of images, or tar or Parquet files: one, a folder of them, or a pattern."""
    out: Path
    column: str = "image"
    """The column of a Parquet file that holds encoded images."""
    top_k: int | None = None
    """Classes for each image, one row each. None is the likeliest, or of several labels all that are answered."""
    shard_images: int = 10_000
    """Images of a folder that become one file of answers."""
    workers: int | None = None
    """Processes that decode; 0 is a thread of this one."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        least = {"--top-k": (self.top_k, 1), "--shard-images": (self.shard_images, 1), "--workers": (self.workers, 0)}
        faults = [
            f"{option} {value}: at least {most}"
            for option, (value, most) in least.items()
            if value is not None and value < most
        ]
        if not self.tasks:
            faults.append("--tasks names none: give names with commas between them, or all")
        if self.out.resolve() == Path(self.images).resolve():
            faults.append(f"--out {self.out} holds the images: name another folder")
        if faults:
            raise ConfigError("; ".join(faults))


def score(config: ScoreConfig) -> None:
    """Score every shard that is not finished yet, and list what has no answer.

    Raises:
        MosaError: the images, the tasks or the folder of the run cannot be used; nothing is scored then.
        DataError: shards cannot be read to their ends; the others are finished.
    """
    settings = Settings.from_environment().model_copy(update={"artifacts": config.store})
    left = LeftOut()
    shards = find_shards(config.images, config.column, config.shard_images, left)
    with RunFolder.locked(config.out) as out, opened(settings, config.tasks) as tasks:
        out.claim(manifest(config, tasks))
        todo = [shard for shard in shards if not out.finished(shard)]
        before = len(shards) - len(todo)
        reading = Reading(tasks.preprocesses, settings.max_pixels)
        workers = min(WORKERS, cores()) if config.workers is None else config.workers
        with Decoders(workers, reading, settings.largest_batch) as decoders:
            faults = _score_all(todo, tasks, decoders, out, config.top_k, left)
    unreadable = out.list_unreadable()
    images = sum(note.images for note in out.notes.values())
    if left.line:
        print(left.line)
    if not (images or faults):
        raise DataError(f"no images in {config.images}: give a folder of images, or tar or Parquet files of them")
    done = f"{config.out}: {len(tasks.tasks)} tasks have answered {images - unreadable:,} of {images:,} images"
    print(f"{done} in {len(out.notes)} of {len(shards)} shards, {before} of them before")
    if unreadable:
        print(f"not answered: {unreadable:,}, see {config.out / UNREADABLE}")
    if faults:
        raise DataError(f"{len(faults)} of {len(shards)} shards have no answers: {'; '.join(faults[:5])}")


def manifest(config: ScoreConfig, tasks: TaskSet) -> Manifest:
    """What a run is made of."""
    plans = {
        task.version.record.task: TaskPlan(bundle=task.version.digest, lane=task.lane.kind, runs=str(task.lane.plan))
        for task in tasks.tasks
    }
    return Manifest(
        mosa_deploy=__version__,
        store=config.store,
        images=str(Path(config.images).absolute()),
        column=config.column,
        shard_images=config.shard_images,
        top_k=config.top_k,
        tasks=plans,
    )


def _score_all(
    shards: Sequence[Shard], tasks: TaskSet, decoders: Decoders, out: RunFolder, top_k: int | None, left: LeftOut
) -> list[str]:
    """Score shards, and return what is wrong with those that cannot be read."""
    counts = [shard.count for shard in shards]
    total = None if None in counts else sum(count or 0 for count in counts)
    faults = []
    with tqdm(total=total, unit="image", disable=None) as bar:
        for number, shard in enumerate(shards, start=1):
            bar.set_description(f"shard {number} of {len(shards)}")
            try:
                with out.writing(shard, top_k) as answers:
                    _score_chunks(decoders.decoded(shard.images(left)), tasks, answers, bar.update)
            except DataError as fault:
                bar.write(f"no answers for {shard.file}: {fault}")
                faults.append(str(fault))
    return faults


def _score_chunks(chunks: Iterable[Chunk], tasks: TaskSet, answers: Answers, progress: Callable[[int], object]) -> None:
    """Write the answers to a shard's images. The next chunks are asked first, so that the graph never waits."""
    waiting: deque[tuple[list[str], Asked]] = deque()

    def write_first() -> None:
        names, asked = waiting.popleft()
        for task, scores in tasks.answers(asked):
            answers.add(task.version.record, names, scores)
        progress(len(names))

    for chunk in chunks:
        answers.images += len(chunk.names)
        read, names = list[list[Pixels]](), list[str]()
        for name, image in zip(chunk.names, chunk.images, strict=True):
            if isinstance(image, str):
                answers.unreadable.append((name, image))
            else:
                names.append(name)
                read.append(image)
        progress(len(chunk.names) - len(names))
        if names:
            waiting.append((names, tasks.ask(read)))
        if len(waiting) > ASKED:
            write_first()
    while waiting:
        write_first()
