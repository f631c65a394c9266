"""The options of `mosa fleet`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import tyro

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.ray_cluster import faults_of_gpus

TABLE = "fleet.csv"
"""The results of a fleet, one line per task, in its folder."""


@dataclass(frozen=True)
class FleetConfig:
    """Tune, evaluate, export and perhaps deploy every task of a file, several at a time.

    The same command goes on where it stopped, and repeats nothing that is finished.
    """

    tasks_file: tyro.conf.Positional[Path]
    """TOML file with options of `mosa tune` for all tasks, in [defaults], and for each of them, in [tasks.NAME]."""
    out: Path = Path("fleet")
    """Folder of the fleet: the runs, their logs, the store, and fleet.csv, fleet.md and fleet.html at the end."""
    store: Path | None = None
    """Folder of the store that the tasks are exported into. Default: `store` in --out."""
    to: str | None = None
    """Address of a service, such as http://localhost:3000, that each task is deployed to once it is exported. Set
    MOSA_KEY to an admin's key."""
    new_classes: bool = False
    """Replace tasks in the store and in the service that have other classes."""
    jobs: int | None = None
    """Number of tasks at a time, each with one thread. Default: one per core, of the cluster with --ray; with a GPU,
    give what fits its memory."""
    ray: str | None = None
    """Carry out the tasks on a Ray cluster: HOST:PORT of its head as `ray start` prints it, or auto. This machine has
    to be one of its nodes, and --out and the images have to lie on storage that all nodes share."""
    gpus: float | None = None
    """With --ray, GPUs for each task; 0.25 lets four share one. Default: none."""
    backbone: str | None = None
    """Tune every task on this backbone, whatever the file says of backbone, weights and image size."""
    backbone_weights: Path | None = None
    """File of the backbone's weights, as in `mosa tune`, for every task."""
    image_size: int | None = None
    """Height and width of the input in pixels, as in `mosa tune`, for every task."""
    beside: Path | None = None
    """The --out of an earlier fleet. Its accuracies stand beside the new ones."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults: list[str] = []
        if self.jobs is not None and self.jobs < 1:
            faults.append(f"--jobs {self.jobs}: at least 1")
        if self.image_size is not None and self.image_size < 1:
            faults.append(f"--image-size {self.image_size}: at least 1, in whole patches")
        if self.beside is not None and self.beside.resolve() == self.out.resolve():
            faults.append(f"--beside {self.beside} is --out: give the new fleet a folder of its own")
        faults += faults_of_gpus(self.ray, self.gpus)
        if faults:
            raise ConfigError("; ".join(faults))

    def on_every_machine(self) -> Self:
        """With paths that mean the same wherever they are read."""
        return replace(self, out=self.out.absolute(), store=self.store_folder.absolute())

    @property
    def store_folder(self) -> Path:
        """The folder of the store."""
        return self.out / "store" if self.store is None else self.store
