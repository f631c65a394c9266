"""The splits of fine-grained data sets that came with Visual Prompt Tuning (VPT, arXiv 2203.12119).

    train.json, val.json, test.json     {"<image>": <class>, ...}
    images/<image>                      or another folder, as the data set has it

Classes are numbers or texts with gaps, such as the 555 of NABirds between 295 and 1010; they are taken in their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.text import read_json
from training.tasks.base import Example, Splits
from training.tasks.benchmark import Benchmark, check_classes_known, missing_files, some

FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}

Classes = Mapping[str, str]
"""Image -> its class, as a file names it."""


@dataclass(frozen=True)
class VptJson:
    """Reads the splits; the images lie in `images`, a folder beside them, or at the same place if it is empty."""

    images: str = ""

    @property
    def layout(self) -> str:
        """See `Reader.layout`."""
        where = f"{self.images}/" if self.images else "its images"
        return f"{where} beside VPT's {', '.join(FILES.values())}"

    def fits(self, folder: Path) -> bool:
        """See `Reader.fits`."""
        return any((folder / name).is_file() for name in FILES.values())

    def read(self, task: Benchmark, folder: Path, split: str | None) -> Splits:
        """See `Reader.read`; there is no choice of `split`."""
        if split is not None:
            raise ConfigError(f"--split {split}: {task.name} has sets of its own, leave it out")
        lacking = missing_files(FILES.values(), folder)
        if lacking:
            raise DataError(f"{folder} lacks {some(lacking)}: {task.name} reads {self.layout}; {task.source}")
        sets = {name: _read(folder / file) for name, file in FILES.items()}
        classes = _in_order({label for images in sets.values() for label in images.values()})
        check_classes_known(task, len(classes), folder / FILES["train"])
        _check_images(task, folder / self.images, sets)
        _check_same(folder, sets)
        labels = {name: label for label, name in enumerate(classes)}
        examples = {
            name: [Example(file, (folder / self.images / file).read_bytes, labels[k]) for file, k in images.items()]
            for name, images in sets.items()
        }
        named = _named(classes, [pair for images in sets.values() for pair in images.items()])
        return Splits(named, examples["train"], examples["validation"], examples["test"], note="VPT's split")


def _read(path: Path) -> Classes:
    """One file of a split.

    Raises:
        DataError: it holds something else.
    """
    try:
        found = read_json(path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): get VPT's splits again") from None
    if not isinstance(found, dict) or not all(type(label) in (int, str) for label in found.values()):
        raise DataError(f"{path} is no split of VPT's: it has to be one object of image and class")
    if not found:
        raise DataError(f"{path} names no image: get VPT's splits again")
    return {file: str(label) for file, label in found.items()}


def _in_order(names: set[str]) -> list[str]:
    """Numbers in their order, other texts by letters."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _check_images(task: Benchmark, folder: Path, sets: Mapping[str, Classes]) -> None:
    """Raises DataError if images are not there."""
    names = [file for images in sets.values() for file in images]
    absent = missing_files(names, folder)
    if not absent:
        return
    counted = f"{len(absent):,} of {len(names):,} images of the JSON files are not in {folder}: {some(absent)}"
    if len(absent) == len(names):
        raise DataError(f"{counted}: these are another data set's splits, or the images of {task.title} lie elsewhere")
    raise DataError(f"{counted}: unpack {task.title} again")


def _check_same(folder: Path, sets: Mapping[str, Classes]) -> None:
    """Raises DataError if validation or test have a class that train has not, or if an image is in two sets."""
    known = set(sets["train"].values())
    seen: dict[str, str] = {}
    for name, images in sets.items():
        strange = _in_order(set(images.values()) - known)
        if strange:
            raise DataError(
                f"{folder / FILES[name]} has {len(strange)} classes that {FILES['train']} has not ({some(strange)}):"
                " the files belong to different splits"
            )
        double = [file for file in images if seen.setdefault(file, name) != name]
        if double:
            raise DataError(
                f"{folder / FILES[name]} and {FILES[seen[double[0]]]} have {len(double):,} images in common"
                f" ({some(double)}): the files belong to different splits"
            )


def _named(classes: list[str], pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """The names of the classes: their folders' if each class has one of its own, else as the files have them."""
    folders: dict[str, set[str]] = {}
    for file, label in pairs:
        folders.setdefault(label, set()).add(Path(file).parent.name)
    names = [next(iter(folders[label])) for label in classes]
    own = all(len(found) == 1 for found in folders.values()) and len(set(names)) == len(names)
    return tuple(names if own and all(names) else classes)
