"""A task of a published benchmark: what is known of it, where its images lie, and who reads them.

Nothing is downloaded. The images are looked for in --data-dir, which is the folder of the data set or one that holds
many of them, or else below `data_root()`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mosa_deploy.errors import DataError
from mosa_deploy.utils.folders import cache_folder
from training.recipe import Recipe
from training.tasks.base import Splits

NAMED = 10
"""The largest number of missing files that an error names; all are counted."""


class Reader(Protocol):
    """Reads one format on disk."""

    @property
    def layout(self) -> str:
        """The files that it reads, in words."""
        ...

    def fits(self, folder: Path) -> bool:
        """Whether a folder holds this format, complete or not."""
        ...

    def read(self, task: "Benchmark", folder: Path, split: str | None) -> Splits:
        """Find the images.

        Raises:
            DataError: files are missing or say something else than the format does.
        """
        ...


@dataclass(frozen=True)
class Benchmark:
    """A task whose classes and sets others have fixed; see `Task`."""

    name: str
    """Group and data set: `vtab/eurosat`."""
    title: str
    classes: int
    counts: tuple[int, int, int]
    """The numbers of training, validation and test images."""
    licence: str
    """What the data set's own page says."""
    source: str
    """How to get it."""
    place: str
    """Its folder below a folder of many data sets."""
    readers: tuple[Reader, ...]
    """The formats that are read; the first one that fits is taken."""
    recipe: Recipe
    squash: bool = False

    @property
    def group(self) -> str:
        """The benchmark that it belongs to: fgvc, vtab or gicd."""
        return self.name.partition("/")[0]

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        folder, reader = self.locate(data_dir)
        found = reader.read(self, folder, split)
        return replace(found, fixed_classes=True, remarks=(*self._remarks(found), *found.remarks))

    def locate(self, data_dir: Path | None) -> tuple[Path, Reader]:
        """The folder of its images, and who reads them.

        Raises:
            DataError: they are not there; says what was looked for, and how to get it.
        """
        if data_dir is not None and data_dir.is_file():
            raise DataError(f"--data-dir {data_dir} is a file: unpack it, and give the folder of {self.title}")
        for reader in self.readers:
            for folder in self.places(data_dir):
                if reader.fits(folder):
                    return folder, reader
        wanted = " or ".join(reader.layout for reader in self.readers)
        where = f"--data-dir {data_dir}" if data_dir else f"{data_root() / self.place} (no --data-dir was given)"
        raise DataError(f"no {self.title} in {where}: {self.name} reads {wanted}. To get it: {self.source}")

    def places(self, data_dir: Path | None) -> list[Path]:
        """The folders in which its images may lie."""
        root = data_root() if data_dir is None else data_dir
        inside = [root / self.place, root / Path(self.place).name]
        return inside if data_dir is None else [root, *inside]

    def is_present(self, data_dir: Path | None) -> bool:
        """Whether its files are there; whether they are complete is not looked at."""
        try:
            self.locate(data_dir)
        except DataError:
            return False
        return True

    def _remarks(self, found: Splits) -> list[str]:
        counts = tuple(len(examples) for examples in found.sets().values())
        if counts == self.counts:
            return []
        return [
            f"warning: {_counted(counts)} images for training, validation and test are not the {_counted(self.counts)}"
            f" of {self.name}: the figures do not stand beside published ones"
        ]


def data_root() -> Path:
    """The folder of all benchmarks where --data-dir is left out."""
    return cache_folder() / "data"


def check_classes_known(task: Benchmark, classes: int, where: Path) -> None:
    """Raises DataError if the files of a data set name more classes than it has."""
    if classes > task.classes:
        raise DataError(
            f"{where} names {classes} classes, and {task.title} has {task.classes}: this is another data set's"
        )


def missing_files(paths: Iterable[str], folder: Path) -> list[str]:
    """The paths of which there is no file below the folder, each once."""
    return [path for path in dict.fromkeys(paths) if not (folder / path).is_file()]


def some(names: Sequence[str]) -> str:
    """`a, b and 3 more`: the first ten of many names."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _counted(counts: Sequence[int]) -> str:
    return " / ".join(f"{count:,}" for count in counts)
