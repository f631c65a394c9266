"""The images that a task is tuned on, and everything that is worth knowing about them before tuning begins."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import write_csv
from mosa_deploy.utils.folders import cache_folder
from training import run
from training.augment import margin
from training.balance import small_class_remarks
from training.cache import CachedSet, reserve
from training.config import TuneConfig
from training.data import ImageSet, absent_remarks, check_classes
from training.duplicates import Mark, Pair, find_duplicates
from training.reading import Reader, some
from training.stream import StreamedImages
from training.tasks.base import Example, Splits
from training.workers import Workers

ADVICE = (
    "Validation and test then look better than new images will: keep the images of one object or series in one set"
    " (--group), and remove copies"
)


IN_MEMORY = 1 << 30
"""The most bytes of pixels that are kept in memory; larger sets are streamed."""


@dataclass(frozen=True)
class Dataset:
    """What tuning reads, after all images have been decoded."""

    train: ImageSet
    validation: ImageSet
    remarks: Sequence[str]
    """What the user should know about the images, one line each."""

    def settled(self) -> "Dataset":
        """This data set."""
        return self


class StreamedDataset:
    """What tuning reads while it is decoded. What there is to say about the images is said after the first epoch."""

    def __init__(self, survey: "Survey", workers: Workers) -> None:
        self.survey = survey
        options = survey.config.streaming
        root = options.cache or cache_folder() / "images"
        examples = {name: given for name, given in survey.read().items() if given}
        how = {name: survey.reader.inspection(True, survey.margin if name == "train" else None) for name in examples}
        sets = {name: CachedSet.of(root, given, how[name]) for name, given in examples.items()}
        reserve(root, [*sets.values()], options.cache_size)
        who = "1 worker process decodes" if workers.count == 1 else f"{workers.count} worker processes decode"
        print(
            f"{who} the images into the cache {root} as they are needed; what is odd about them is said when all have"
            " been decoded",
            flush=True,
        )
        classes = len(survey.splits.classes)
        self.images = {
            name: StreamedImages(sets[name], examples[name], how[name], workers, name, self.settled, classes)
            for name in sets
        }

    @property
    def train(self) -> StreamedImages:
        """The training images."""
        return self.images["train"]

    @property
    def validation(self) -> StreamedImages:
        """The validation images."""
        return self.images["validation"]

    def settled(self) -> Dataset:
        """The data set after all images have been decoded.

        Raises:
            DataError: too many images are unreadable, a set is empty, or images would be almost black.
        """
        return self._settled

    @cached_property
    def _settled(self) -> Dataset:
        for name, images in self.images.items():
            for example, finding in images.findings():
                self.survey.reader.note(example, finding, name, self.survey.marks.get(name))
        return self.survey.conclude(self.train.readable, self.validation.readable)


@dataclass(frozen=True)
class Survey:
    """What is found in the images of all sets. Lists go into the folder `out`."""

    splits: Splits
    reader: Reader
    config: TuneConfig
    out: Path

    def __post_init__(self) -> None:
        """Check that there are images to select on."""
        if not self.splits.validation:
            raise DataError("there are no validation images")

    @cached_property
    def given(self) -> bool:
        """Whether the images come from the user."""
        return self.config.data_dir is not None or bool(self.config.labels)

    @cached_property
    def margin(self) -> Preprocess | None:
        """How training images are read, if not like all others."""
        return margin(self.reader.preprocess, self.config.augmentation.augment or "none")

    @cached_property
    def marks(self) -> dict[str, list[Mark]]:
        """The marks of each set's images, which find those that two sets have in common; empty if nothing looks."""
        return {name: [] for name in self.splits.sets()} if self.given and not self.config.skip_duplicates else {}

    def read(self) -> dict[str, Sequence[Example]]:
        """The sets to read. Those of the user's test set are only compared with the others, and no model sees them."""
        return {name: given for name, given in self.splits.sets().items() if name != "test" or self.marks}

    def conclude(self, train: ImageSet, validation: ImageSet) -> Dataset:
        """Say what is odd about the images, after all have been noted.

        Raises:
            DataError: too many images are unreadable, a set is empty, or images would be almost black.
        """
        classes, out, config = self.splits.classes, self.out, self.config
        remarks = self.reader.finish(out / run.UNREADABLE)
        if self.given:
            run.keep_seen(out, ((each.sha256, each.file) for each in self.reader.digests if each.set != "test"))
        found = [*self.reader.remarks(), *absent_remarks(validation, classes, "validation")]
        if self.splits.fixed_classes:
            found += absent_remarks(train, classes, "training")
        if config.shots is None:
            found += small_class_remarks(train.labels, classes, config.balance or "none")
        if self.marks:
            found += repeated(self.marks, self.splits, out / run.DUPLICATES)
        for remark in found:
            print(remark, file=sys.stderr)
        if any((out / name).is_file() for name in (run.UNREADABLE, run.DUPLICATES)):
            print(f"the lists are in {out}", file=sys.stderr)
        if not self.splits.fixed_classes:
            check_classes(train, classes, "training", config.starting.least_classes)
        return Dataset(train, some(validation, "validation"), [*self.splits.remarks, *remarks, *found])


Data = Dataset | StreamedDataset

Read = Callable[[Splits, Preprocess, TuneConfig, Path, Workers], Data]
"""Reads the images of a run: `read_dataset`, or what several runs share."""


def read_dataset(splits: Splits, preprocess: Preprocess, config: TuneConfig, out: Path, workers: Workers) -> Data:
    """Decode train and validation, and say what is odd about the images of all sets; lists go into the folder `out`.

    Training images have a margin if they are cropped by --augment in `config`. Large sets, and those that are to be
    cached, are decoded later by `workers`, when they are needed.

    Raises:
        DataError: too many images are unreadable, a set is empty, or images would be almost black.
        ConfigError: the cache would be larger than it may be.
        WriteError: the disk has too little room for it.
    """
    survey = Survey(splits, Reader(preprocess, config.reading, classes=len(splits.classes)), config, out)
    sizes = ((splits.train, survey.margin or preprocess), (splits.validation, preprocess))
    pixels = sum(3 * len(images) * math.prod(how.size) for images, how in sizes)
    if config.streaming.cache is not None or pixels > IN_MEMORY:
        return StreamedDataset(survey, workers)
    reader, marks = survey.reader, survey.marks
    train = reader.images(splits.train, "train", marks.get("train"), survey.margin)
    validation = reader.images(splits.validation, "validation", marks.get("validation"))
    if marks and splits.test:
        print(
            f"decoding the {len(splits.test)} test images too, only to find those that repeat another set's"
            " (--skip-duplicates leaves this out)",
            flush=True,
        )
        marks["test"] = reader.marks(splits.test, "test")
    return survey.conclude(train, validation)


def repeated(marks: dict[str, list[Mark]], splits: Splits, listing: Path) -> list[str]:
    """What to say of the images that two sets have in common, each of which is a line of the file `listing`."""
    duplicates = find_duplicates(marks)
    listing.unlink(missing_ok=True)
    if not duplicates.pairs:
        return []
    write_csv(
        listing,
        Pair._fields,
        (
            (
                pair.kind,
                pair.set,
                pair.file,
                splits.name_of(pair.label),
                pair.first_set,
                pair.first_file,
                splits.name_of(pair.first_label),
            )
            for pair in duplicates.pairs
        ),
    )
    lines = "; ".join(duplicates.remarks())
    return [f"warning: {lines}; see {listing.name}. {ADVICE}"]
