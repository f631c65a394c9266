"""Classify files by one task, without a server, and write a CSV: `mosa predict artifacts/tasks/digits images/`.

An image on which a task with several labels finds none has one line without class and score.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from mosa_deploy.bundles.answers import threshold_fault
from mosa_deploy.bundles.image_files import find_images, image_suffixes
from mosa_deploy.client.predictor import Predictor
from mosa_deploy.client.schema import Answer
from mosa_deploy.errors import ConfigError, DataError, unknown_name
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, RUNNERS, RunnerName
from mosa_deploy.utils.files import printable, replacing

COLUMNS = ("file", "class", "score")


@dataclass(frozen=True)
class PredictConfig:
    """What `mosa predict` is asked for."""

    task: Path
    """The task's folder in a store."""
    images: Sequence[Path]
    """Files, and folders of files."""
    out: Path
    """The CSV to write."""
    top_k: int | None = None
    """Classes for each image, one line each. None is the likeliest, or of several labels all that are answered."""
    threshold: float | None = None
    """For a task with several labels per image: the score from which on a label is answered."""
    batch: int = 16
    runner: RunnerName = DEFAULT_RUNNER

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        numbers = {"--top-k": self.top_k, "--batch": self.batch}
        faults = [
            f"{option} {value}: at least 1" for option, value in numbers.items() if value is not None and value < 1
        ]
        if fault := threshold_fault(self.threshold):
            faults.append(f"--threshold {fault}")
        if self.out.suffix.lower() in image_suffixes():
            faults.append(f"--out {self.out}: the CSV to write, not an image")
        if self.runner not in RUNNERS:
            faults.append(unknown_name("runner", self.runner, RUNNERS))
        if faults:
            raise ConfigError("; ".join(faults))


def predict(config: PredictConfig) -> None:
    """Answer every image that can be read, and list the others.

    Raises:
        MosaError: the task cannot be opened, or there are no images.
        DataError: some images cannot be read; the answers of the others are written.
    """
    files, left_out = find_images(config.images)
    if left_out:
        print(left_out)
    predictor = Predictor.open(config.task, config.runner)
    predictor.check_threshold(config.threshold)
    unreadable: list[str] = []
    with replacing(config.out) as aside, aside.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for file, answer in answers(predictor, config, files, unreadable):
            lines = [(each.label, f"{each.score:.6f}") for each in answer.predictions] or [("", "")]
            writer.writerows((printable(file), *line) for line in lines)
    for fault in unreadable:
        print(f"not answered: {printable(fault)}")
    print(f"{config.out}: {predictor.task} answered {len(files) - len(unreadable)} of {len(files)} images")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(files)} images cannot be read, see above; repair or remove them")


def answers(
    predictor: Predictor, config: PredictConfig, files: Iterable[Path], unreadable: list[str]
) -> Iterator[tuple[Path, Answer]]:
    """Each file with its answer, in order; why a file has none is added to `unreadable`."""
    top_k = config.top_k or (None if predictor.bundle.record.multi_label else 1)
    remaining = iter(tqdm(files, unit="image", disable=None))
    while part := list(islice(remaining, config.batch)):
        pixels = {}
        for file in part:
            try:
                pixels[file] = predictor.pixels(file)
            except DataError as error:
                unreadable.append(str(error))
        if pixels:
            found = predictor.answer(list(pixels.values()), top_k, config.threshold)
            yield from zip(pixels, found, strict=True)
