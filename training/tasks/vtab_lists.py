"""VTAB-1k as one folder per task, which most code for it reads: lists of image and label beside the images.

    images/train800/000000.jpg
    train800.txt, val200.txt, test.txt, train800val200.txt     `images/train800/000000.jpg 31` per line

The first three are read; `--split 1000` reads the last one in the place of the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.text import decode_text
from training.tasks.base import Example, Splits
from training.tasks.benchmark import Benchmark, missing_files, some

ALL = "train800val200.txt"
LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}

SPLITS = {
    "800-200": "VTAB-1k's lists: 800 images to train on, 200 for validation",
    "1000": "VTAB-1k's lists: all 1,000 images to train on, as in published tables; validation repeats 200 of them",
}
"""The values of --split, and what the run says of each."""


@dataclass
class Faults:
    """Everything that is wrong with the lists of a task."""

    lines: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Images of which there is no file."""

    def check(self, folder: Path, total: int) -> None:
        """Raises DataError with every fault at once, if there is any."""
        texts = [some(self.lines)] if self.lines else []
        if self.absent:
            texts.append(f"{len(self.absent):,} of {total:,} images are not there: {some(self.absent)}")
        if texts:
            raise DataError(f"{folder}: {'; '.join(texts)}: unpack the data set again, or repair its lists")


class VtabLists:
    """Reads the lists; see the module."""

    layout = f"images/ beside {', '.join(LISTS.values())}"

    def fits(self, folder: Path) -> bool:
        """See `Reader.fits`: one list is enough to tell the format."""
        return any((folder / name).is_file() for name in (*LISTS.values(), ALL))

    def read(self, task: Benchmark, folder: Path, split: str | None) -> Splits:
        """See `Reader.read`; `split` is `800-200`, the default, or `1000`."""
        split = split or next(iter(SPLITS))
        if split not in SPLITS:
            raise ConfigError(f"--split {split}: {task.name} takes {' or '.join(SPLITS)}")
        names = LISTS | ({"train": ALL} if split == "1000" else {})
        lacking = missing_files(names.values(), folder)
        if lacking:
            raise DataError(f"{folder} lacks {some(lacking)}: unpack {task.title} again, with {self.layout}")
        faults = Faults()
        sets = {name: list(_examples(folder, listing, task, faults)) for name, listing in names.items()}
        faults.check(folder, sum(map(len, sets.values())))
        width = len(str(task.classes - 1))
        classes = tuple(f"{label:0{width}}" for label in range(task.classes))
        return Splits(classes, sets["train"], sets["validation"], sets["test"], note=SPLITS[split])


def _examples(folder: Path, listing: str, task: Benchmark, faults: Faults) -> Iterator[Example]:
    """The images of a list, in its order; notes what is wrong."""
    known: dict[str, int] = {}
    for number, line in enumerate(decode_text((folder / listing).read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        name, _, text = line.expandtabs(1).strip().rpartition(" ")
        name, where = name.rstrip(), f"{listing}:{number}"
        if not name or not text.isdecimal():
            faults.lines.append(f"{where} is {line.strip()[:80]!r}, not an image and a label")
        elif int(text) >= task.classes:
            faults.lines.append(f"{where} has label {text}, and {task.title} has labels 0 to {task.classes - 1}")
        elif known.setdefault(name, int(text)) != int(text):
            faults.lines.append(f"{where} has label {text} for {name}, and an earlier line has {known[name]}")
        else:
            yield Example(name, (folder / name).read_bytes, int(text))
    if not known:
        faults.lines.append(f"{listing} names no image")
    faults.absent += missing_files(known, folder)
