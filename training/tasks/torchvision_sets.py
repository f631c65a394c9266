"""Data sets in the layout that torchvision's own classes read, and write when they download.

torchvision finds the files and their labels; the images are decoded by the same code as all others. Sets that a data
set lacks are drawn by a seed of the task.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from mosa_deploy.bundles.decode import encode
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.seeds import derive
from training.tasks.base import SPLIT_SEED, Example, Splits, draw_sets
from training.tasks.benchmark import Benchmark, check_classes_known, missing_files, some

Options = Mapping[str, Any]

TRAIN_TEST: dict[str, tuple[Options, ...]] = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
TRAIN_VAL_TEST = TRAIN_TEST | {"validation": ({"split": "val"},)}
CIFAR = {"train": ({"train": True},), "test": ({"train": False},)}

TENTH = 10
"""One in so many training images of each class is for validation, if a data set has no such set."""


@dataclass(frozen=True)
class Torchvision:
    """Reads the layout of one of `torchvision.datasets`."""

    kind: str
    """Name of the class."""
    mark: str
    """What lies below its root folder, and tells it from others."""
    sets: Mapping[str, tuple[Options, ...]]
    """Set -> the options of the class that give its images; several are put together."""
    draw: tuple[int, int] | None = None
    """The numbers of training and validation images to draw of what is not in the test set; None takes all."""
    test: int = 0
    """The number of test images to draw with them, if the data set has no test set."""
    first: int = 0
    """The label of the first class."""
    files: Callable[[Any], Iterable[tuple[Path, int]]] | None = None
    """Data set -> its files with their labels, where the class itself does not give them; see `annotations`."""
    reader: Callable[[Path], Callable[[], bytes]] = lambda path: path.read_bytes
    """One of these files -> what reads its image."""
    needs: str = ""
    """The library of an extra that torchvision reads it with."""

    @property
    def layout(self) -> str:
        """See `Reader.layout`."""
        return f"{self.mark} (torchvision's {self.kind})"

    def fits(self, folder: Path) -> bool:
        """See `Reader.fits`."""
        return (folder / self.mark).exists()

    def read(self, task: Benchmark, folder: Path, split: str | None) -> Splits:
        """See `Reader.read`; there is no choice of `split`."""
        if split is not None:
            raise ConfigError(f"--split {split}: {task.name} in torchvision's layout has one split, leave it out")
        classes = tuple(f"{label}" for label in range(task.classes))
        read: dict[str, list[Example]] = {}
        for name, given in self.sets.items():
            datasets = [self._dataset(task, folder, options) for options in given]
            read[name] = [example for dataset in datasets for example in self._examples(task, dataset, folder, name)]
            classes = tuple(getattr(datasets[0], "classes", getattr(datasets[0], "categories", classes)))
        check_classes_known(task, len(classes), folder / self.mark)
        _check(task, folder, [example for examples in read.values() for example in examples])
        return self._composed(task, classes, read)

    def _dataset(self, task: Benchmark, folder: Path, options: Options) -> Any:
        """One of torchvision's data sets, whose `loader` gives paths.

        Raises:
            ConfigError: a library is missing.
            DataError: torchvision cannot read it.
        """
        if self.needs and find_spec(self.needs) is None:
            raise ConfigError(
                f"{task.name} in torchvision's layout is read with {self.needs}: pip install"
                f" 'mosa-deploy[{self.needs}]'"
            )
        # torchvision takes a second to import; --help should not wait for it.
        from torchvision import datasets

        kind = getattr(datasets, self.kind)
        takes_loader = self.files is None and self.kind not in ARRAYS
        try:
            return kind(str(folder), **options, **({"loader": Path} if takes_loader else {}))
        except UNREADABLE as error:
            raise self._unreadable(task, folder, error) from None

    def _unreadable(self, task: Benchmark, folder: Path, error: Exception) -> DataError:
        why = re.split(r" You (?:can|may) use download=True", str(error))[0].rstrip(".")
        return DataError(
            f"torchvision's {self.kind} cannot read {folder / self.mark} ({type(error).__name__}: {why}): unpack"
            f" {task.title} again; {task.source}"
        )

    def _examples(self, task: Benchmark, dataset: Any, folder: Path, name: str) -> list[Example]:
        """The images of one of torchvision's data sets, sorted by path if they are files.

        Raises:
            DataError: its annotations cannot be read.
        """
        if hasattr(dataset, "data"):
            return _of_arrays(dataset, name, self.first)
        try:
            pairs = [dataset[i] for i in range(len(dataset))] if self.files is None else self.files(dataset)
            named = sorted((Path(path).relative_to(folder).as_posix(), int(label)) for path, label in pairs)
        except UNREADABLE as error:
            raise self._unreadable(task, folder, error) from None
        return [Example(path, self.reader(folder / path), label - self.first) for path, label in named]

    def _composed(self, task: Benchmark, classes: tuple[str, ...], read: dict[str, list[Example]]) -> Splits:
        """Draw the sets that are missing."""
        train, note = read["train"], f"torchvision's {self.kind}"
        if self.draw is not None:
            train = [*train, *read.get("validation", [])]
            first, second, third = _fitting((*self.draw, self.test), len(train))
            drawn = Random(derive(SPLIT_SEED, task.name)).sample(train, first + second + third)
            test = read.get("test", drawn[first + second :])
            note += f": {first:,} and {second:,} images drawn by a seed of ours, which are not VTAB's"
            return Splits(classes, drawn[:first], drawn[first : first + second], test, note=note)
        if "validation" in read:
            return Splits(classes, train, read["validation"], read["test"], note=f"{note}, its own sets")
        count = len(train) // TENTH
        apart = draw_sets(train, {"train": len(train) - count, "validation": count}, classes)
        note += "; validation is a stratified tenth of train"
        return Splits(classes, apart["train"], apart["validation"], read["test"], note=note)


def _fitting(sizes: tuple[int, int, int], total: int) -> tuple[int, int, int]:
    """The sizes of sets, in the same proportions if there are fewer images."""
    share = min(1.0, total / sum(sizes))
    second, third = int(share * sizes[1]), int(share * sizes[2])
    return (sizes[0] if share == 1 else total - second - third), second, third


ARRAYS = ("CIFAR100", "SVHN")
"""The classes that keep images as arrays."""

UNREADABLE = (OSError, RuntimeError, ValueError, LookupError)
"""What torchvision's classes raise where files are missing or damaged."""


def _of_arrays(dataset: Any, name: str, first: int) -> list[Example]:
    """The images of a data set that keeps them as arrays."""
    arrays = dataset.data.transpose(0, 2, 3, 1) if dataset.data.shape[1] == 3 else dataset.data
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return [
        Example(f"{name}/{i:05d}", partial(encode, array), int(label) - first)
        for i, (array, label) in enumerate(zip(arrays, labels, strict=True))
    ]


def _check(task: Benchmark, folder: Path, examples: Sequence[Example]) -> None:
    """Raises DataError if files are missing, or if a label is out of range."""
    paths = [example.name for example in examples if isinstance(getattr(example.read, "__self__", None), Path)]
    absent = missing_files(paths, folder)
    if absent:
        raise DataError(
            f"{len(absent):,} of {len(paths):,} images of {task.title} are not in {folder}: {some(absent)}: unpack it"
            " again"
        )
    odd = [f"{each.name} ({each.label})" for each in examples if not 0 <= int(str(each.label)) < task.classes]
    if odd:
        raise DataError(f"{folder}: {len(odd):,} labels are not 0 to {task.classes - 1}: {some(odd)}")
