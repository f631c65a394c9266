"""What `mosa score` is asked for, and what a run of it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mosa_deploy import __version__
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.processes import cores
from serving.score_output import Manifest, TaskPlan
from serving.score_tasks import TaskSet

WORKERS = 8
"""The most processes that decode images, unless more are asked for."""


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
    """Processes that decode, on a cluster for each process that answers; 0 is a thread of that one."""
    ray: str | None = None
    """The address of a Ray cluster; None is this machine."""

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

    @property
    def decoders(self) -> int:
        """The processes that decode for each process that answers."""
        return self.workers if self.workers is not None else 0 if self.ray else min(WORKERS, cores())

    def on_every_machine(self) -> Self:
        """With paths that mean the same wherever they are read."""
        store = self.store if "://" in self.store else str(Path(self.store).absolute())
        return replace(self, store=store, images=str(Path(self.images).absolute()), out=self.out.absolute())


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
