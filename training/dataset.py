"""The images that a task is tuned on, and everything that is worth knowing about them before tuning begins."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_csv
from training import run
from training.balance import small_class_remarks
from training.config import TuneConfig
from training.data import Images, absent_remarks, check_classes
from training.duplicates import Mark, Pair, find_duplicates
from training.reading import Reader, some
from training.tasks.base import Splits

ADVICE = (
    "Validation and test then look better than new images will: keep the images of one object or series in one set"
    " (--group), and remove copies"
)


@dataclass(frozen=True)
class Dataset:
    """What tuning reads."""

    train: Images
    validation: Images
    remarks: Sequence[str]
    """What the user should know about the images, one line each."""


Read = Callable[[Splits, Preprocess, TuneConfig, Path], Dataset]
"""Reads the images of a run: `read_dataset`, or what several runs share."""


def read_dataset(splits: Splits, preprocess: Preprocess, config: TuneConfig, out: Path) -> Dataset:
    """Decode train and validation, and say what is odd about the images of all sets; lists go into the folder `out`.

    Test images are decoded too if they come from the user, but only to be compared with the others and counted: nothing
    is chosen by them, and no model sees them.

    Raises:
        DataError: too many images are unreadable, a set is empty, or images would be almost black.
    """
    reader = Reader(preprocess, config.reading)
    given = config.data_dir is not None or config.labels
    compared = bool(given) and not config.skip_duplicates
    marks: dict[str, list[Mark]] = {name: [] for name in splits.sets()}
    train = reader.images(splits.train, "train", marks["train"] if compared else None)
    validation = reader.images(splits.validation, "validation", marks["validation"] if compared else None)
    if compared and splits.test:
        print(
            f"decoding the {len(splits.test)} test images too, only to find those that repeat another set's"
            " (--skip-duplicates leaves this out)",
            flush=True,
        )
        marks["test"] = reader.marks(splits.test, "test")
    remarks = reader.finish(out / run.UNREADABLE)
    if given:
        run.keep_seen(out, ((each.sha256, each.file) for each in reader.digests if each.set != "test"))
    found = [*reader.remarks(), *absent_remarks(validation, splits.classes, "validation")]
    if config.shots is None:
        found += small_class_remarks(train.labels, splits.classes, config.balance or "none")
    if compared:
        found += repeated(marks, splits.classes, out / run.DUPLICATES)
    for remark in found:
        print(remark, file=sys.stderr)
    if any((out / name).is_file() for name in (run.UNREADABLE, run.DUPLICATES)):
        print(f"the lists are in {out}", file=sys.stderr)
    check_classes(train, splits.classes, "training")
    return Dataset(train, some(validation, "validation"), [*splits.remarks, *remarks, *found])


def repeated(marks: dict[str, list[Mark]], classes: Sequence[str], listing: Path) -> list[str]:
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
                classes[pair.label],
                pair.first_set,
                pair.first_file,
                classes[pair.first_label],
            )
            for pair in duplicates.pairs
        ),
    )
    lines = "; ".join(duplicates.remarks())
    return [f"warning: {lines}; see {listing.name}. {ADVICE}"]
