"""Measure a task on its test set.

    mosa evaluate --bundle runs/digits
    mosa evaluate --onnx artifacts/tasks/digits/folded.onnx
    mosa evaluate --onnx artifacts/backbones/NAME/shared.fp16.onnx --bundle artifacts/tasks/digits
    mosa evaluate --backbone vit_tinyd6_patch4_32.cifar10 --data-dir cifar10.tar.gz

Classes are matched by name. Everything is chosen on validation images: this is the only place where a model sees the
test set.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mosa_deploy.bundles.class_match import match_classes
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import DataError, command
from mosa_deploy.utils.files import write_text
from training import run
from training.arguments import evaluate_config
from training.chance import chance_remarks
from training.data import Images, absent_remarks
from training.label_predictions import write_label_mistakes, write_label_predictions
from training.label_scores import label_remarks
from training.options import EvaluateConfig
from training.predictions import MISTAKES, PREDICTIONS, write_mistakes, write_predictions
from training.reading import Digest, Reader, some
from training.scores import classification_metrics
from training.scores import measure as measured
from training.subjects import Subject, choose_subject
from training.tasks import OWN_IMAGES, find
from training.tasks.base import Example, Splits
from training.tasks.folder import Folder, has_sets


@dataclass(frozen=True)
class Evaluation:
    """The answers of a subject on the test set."""

    subject: Subject
    test: Images
    """Its labels are places among the subject's classes."""
    probabilities: Array

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of `training.scores.measure`."""
        if self.subject.record is None:
            return classification_metrics(self.probabilities, self.test.labels)
        return measured(self.subject.record, self.probabilities, self.test.labels)

    def doubts(self) -> list[str]:
        """A line if the answers are no better than guessing."""
        if self.subject.multi_label:
            return label_remarks(self.probabilities, self.test.labels, self.subject.classes)
        return chance_remarks(self.test.labels.numpy(), self.probabilities.argmax(1), self.subject.classes)


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, negative log likelihood and calibration error on the test set.

    With several labels per image, the metrics are those of `training.label_scores.label_metrics`.

    Raises:
        ConfigError: not exactly one of a bundle, a graph and a backbone is given.
        MosaError: the model or the images are missing or damaged, or their classes differ.
    """
    return measure(config, *choose_subject(config)).metrics


def measure(config: EvaluateConfig, subject: Subject, folder: Path | None, out: Path | None = None) -> Evaluation:
    """The answers on the test set. `folder` holds the subject's bundle; `out` takes the list of unreadable images.

    Raises:
        MosaError: the model or the images are missing or damaged, or their classes differ.
    """
    images = image_settings(config, folder, subject.dataset)
    data_dir = images.data_dir
    splits = images.splits(subject.dataset, subject.multi_label)
    if splits.multi_label and not subject.multi_label:
        raise DataError(f"{subject.dataset} has several labels per image, and {subject.name} answers with one class")
    for remark in splits.remarks:
        print(remark)
    if folder is not None and config.own_images:
        splits = splits_of_run(folder, splits)
    examples, reader = splits.test, Reader(subject.preprocess, config.reading, classes=len(splits.classes))
    if folder is not None and config.own_images:
        reader.beside = len(splits.train) + len(splits.validation)
        reader.accepted = run.read_unreadable(folder)
    print(f"{len(examples):,} test images, {splits.note}{others(config, splits)}")
    if not examples:
        raise DataError(
            f"there is no test set in {data_dir}: give --data-dir FOLDER that holds test/<class>/<file>; the figures on"
            " validation are in the run's report.md"
        )
    where = f"--data-dir {data_dir}" if data_dir else subject.dataset
    match = match_classes(subject.classes, splits.classes, where, some=subject.multi_label)
    for note in match.notes:
        print(f"warning: {note}", file=sys.stderr)
    test = reader.images(examples, "test")
    reader.finish(out / run.UNREADABLE if out else None)
    drawn = bool(splits.train) and not config.own_images
    for remark in [
        *reader.remarks(),
        *absent_remarks(test, splits.classes, "test"),
        *seen_remarks(folder, reader.digests, drawn),
    ]:
        print(remark, file=sys.stderr)
    test = replace(some(test, "test"), labels=placed(test.labels, match.places, len(subject.classes)))
    return Evaluation(subject, test, subject.scores(test))


def placed(labels: Tensor, places: Sequence[int], classes: int) -> Tensor:
    """Labels (N,) or (N, J), each of whose J classes has one of these places among those of a task."""
    if labels.ndim == 1:
        return torch.tensor(places)[labels]
    found = torch.zeros(len(labels), classes)
    found[:, list(places)] = labels
    return found


def splits_of_run(folder: Path, splits: Splits) -> Splits:
    """The splits with the test set that the run in `folder` kept apart, and those of the runs that it extends.

    Raises:
        DataError: the images of an earlier run are not where they were.
    """
    own = replace(splits, test=test_of_run(folder, splits))
    before = run.read_settings(folder).get("extend")
    if before is None:
        return own
    earlier = _still_there(folder, before)
    record = read_record(earlier)
    images = image_settings(EvaluateConfig(bundle=earlier), earlier, record.dataset)
    old = splits_of_run(earlier, images.splits(record.dataset))
    train, validation, test = (
        [*old.sets()[name], *(after(example, len(old.classes)) for example in examples)]
        for name, examples in own.sets().items()
    )
    return Splits((*old.classes, *own.classes), train, validation, test, f"{own.note}; the old classes: {old.note}")


def after(example: Example, classes: int) -> Example:
    """The same image, where so many classes come before its own."""
    assert isinstance(example.label, int)
    return example._replace(label=example.label + classes)


def test_of_run(folder: Path, splits: Splits) -> Sequence[Example]:
    """The test set that the run in `folder` kept apart, even if images were added or removed since.

    A new image draws the split anew, and what was tuned on would be measured.
    """
    kept = run.read_split(folder)
    if kept is None or [example.name for example in splits.test] == kept["test"]:
        return splits.test
    if len({name for names in kept.values() for name in names}) < sum(map(len, kept.values())):
        return splits.test  # Sets of their own: a name says nothing about what the others hold.
    here = {example.name: example for examples in splits.sets().values() for example in examples}
    found = [here[name] for name in kept["test"] if name in here]
    print(
        f"warning: images were added, removed or renamed since {folder} was tuned, which draws another split; its own"
        f" test set is used ({folder / run.SPLIT}), of which {len(found)} of {len(kept['test'])} images are here",
        file=sys.stderr,
    )
    return found


def seen_remarks(folder: Path | None, digests: Sequence[Digest], drawn: bool) -> list[str]:
    """A line if the run in `folder` saw some of these images while it was tuned, else none.

    If it does not say which it saw, a line if the test set was `drawn` from a folder that may hold them.
    """
    if folder is None:
        return []
    seen = run.read_seen(folder)
    if not seen and drawn:
        return [
            f"warning: {folder} does not say on which images it was tuned: if they are among these, the figures are too"
            " good; evaluate the folder of the run, which knows its test set"
        ]
    found = [each.file for each in digests if each.sha256 in seen]
    if not found:
        return []
    return [
        f"warning: {len(found)} of {len(digests)} test images are images on which {folder} was tuned or selected, such"
        f" as {found[0]}: the figures are better than new images will give; leave them out ({run.SEEN} lists them), or"
        " leave out --data-dir and --split for the run's own test set"
    ]


def others(config: EvaluateConfig, splits: Splits) -> str:
    """How many images in another folder are not evaluated, in words; empty if all are, or for a run's own images."""
    count = len(splits.train) + len(splits.validation)
    if config.data_dir is None or not count:
        return ""
    way = "with `test` in a column `split`" if config.labels else f"below {config.data_dir}/test"
    return f"; {count:,} others in {config.data_dir} are not evaluated: {way}, all would be"


class ImageSettings(NamedTuple):
    """Which images are evaluated: the options of these names."""

    data_dir: Path | None
    split: str | None
    labels: tuple[Path, ...]
    group: str | None
    task: str | None = None
    """The task that reads them, if it is not the one that was tuned on."""
    least: int = 2
    """The smallest number of classes: one if a run added it to others."""

    def splits(self, dataset: str, multi_label: bool = False) -> Splits:
        """The images in their sets.

        Raises:
            DataError: they are missing, or cannot be split as asked.
        """
        task = find(self.task or dataset, self.labels, self.group, multi_label, self.least)
        return task.splits(self.data_dir, self.split)


def image_settings(config: EvaluateConfig, folder: Path | None, dataset: str) -> ImageSettings:
    """The options of the command line, otherwise those that the run was tuned with.

    Another folder that has sets of its own is taken as it is: the run's split says nothing about it. `dataset` is the
    task that was tuned on; one that brings its own images can be evaluated on a folder of others.

    Raises:
        DataError: the run's images or its tables are not where they were.
    """
    if config.data_dir is not None and dataset in OWN_IMAGES:
        return ImageSettings(config.data_dir, config.split, config.labels, config.group, Folder.name)
    if folder is None or (config.data_dir is not None and has_sets(config.data_dir)):
        return ImageSettings(config.data_dir, config.split, config.labels, config.group)
    tuned = run.read_settings(folder)
    data_dir = config.data_dir or (_still_there(folder, tuned["data_dir"]) if tuned.get("data_dir") else None)
    labels = config.labels or tuple(_still_there(folder, path) for path in tuned.get("labels") or ())
    split, group = config.split or tuned.get("split"), config.group or tuned.get("group")
    return ImageSettings(data_dir, split, labels, group, least=1 if tuned.get("extend") else 2)


def _still_there(folder: Path, path: str) -> Path:
    """A folder or file that the run in `folder` was tuned on.

    Raises:
        DataError: it is not there.
    """
    if Path(path).exists():
        return Path(path)
    place = "" if Path(path).is_absolute() else f" in {Path.cwd()}: run the command where the task was tuned"
    raise DataError(
        f"{folder} was tuned on {path}, which is not there{place}{', or' if place else ':'} give --data-dir"
    )


def print_evaluation(config: EvaluateConfig) -> None:
    """Evaluate, write predictions, a picture of the worst mistakes and the metrics, and print these in one line."""
    subject, folder = choose_subject(config)
    out = config.out or default_out(config, subject, folder)
    found = measure(config, subject, folder, out)
    given, decode = (found.test, found.probabilities, subject.classes), subject.preprocess.decode
    if subject.thresholds is None:
        write_predictions(out, *given)
        mistakes = write_mistakes(out, *given, decode)
    else:
        write_label_predictions(out, *given, subject.thresholds)
        mistakes = write_label_mistakes(out, *given, subject.thresholds, decode)
    print(
        f"test of {config.onnx or config.bundle or config.backbone}: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.metrics.items())
    )
    write_text(out / run.METRICS, json.dumps(found.metrics, indent=2) + "\n")
    print(f"every answer is in {out / PREDICTIONS}" + (f", the worst mistakes in {out / MISTAKES}" if mistakes else ""))
    for doubt in found.doubts():
        print(doubt, file=sys.stderr)


def default_out(config: EvaluateConfig, subject: Subject, folder: Path | None) -> Path:
    """Beside a run, or in the current folder: a store holds nothing but what is served."""
    own = folder is not None and config.onnx is None and (folder / run.CONFIG).is_file()
    return folder / run.EVALUATION if own and folder is not None else Path(run.EVALUATION) / subject.name


@command
def main() -> None:
    """The command line."""
    print_evaluation(evaluate_config())


if __name__ == "__main__":
    main()
