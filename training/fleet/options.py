"""The options of `mosa fleet`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mosa_deploy.errors import ConfigError

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
    """Number of tasks at a time, each with one thread. Default: one per core; with a GPU, give what fits its memory."""
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
        faults = []
        if self.jobs is not None and self.jobs < 1:
            faults.append(f"--jobs {self.jobs}: at least 1")
        if self.image_size is not None and self.image_size < 1:
            faults.append(f"--image-size {self.image_size}: at least 1, in whole patches")
        if self.beside is not None and self.beside.resolve() == self.out.resolve():
            faults.append(f"--beside {self.beside} is --out: give the new fleet a folder of its own")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def store_folder(self) -> Path:
        """The folder of the store."""
        return self.out / "store" if self.store is None else self.store
