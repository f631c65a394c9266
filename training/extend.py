"""A task gets more classes: `mosa tune --extend RUN --data-dir NEW`, where NEW holds the new classes alone.

The adapter and the rows of the head go on from where they are. Images of the old classes come from the run's
`calibration.npz`: it keeps training images, the exemplars that are tuned on, and validation images, which take part in
the choice of the epoch and tell what was forgotten: the accuracy on the old classes before, minus that afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image

from mosa_deploy.adapters.attach import load_task_state, task_state
from mosa_deploy.backbones.foldable import Transformer, topology_of
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import CALIBRATION, Labels, Samples, read_samples
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.errors import BackboneError, ConfigError, DataError, listed
from training import run
from training.balance import turns_of
from training.config import TuneConfig
from training.data import Images
from training.dataset import Dataset
from training.joined import JoinedSet
from training.loop import predict
from training.tasks.base import Example, Splits
from training.tasks.classes import check_names


@dataclass(frozen=True)
class Beginning:
    """The task that a run starts from."""

    option: str
    """How it was named: `--init runs/digits`."""
    bundle: Bundle

    @property
    def record(self) -> Record:
        """What its bundle is."""
        return self.bundle.record

    def check(self, backbone: Backbone, adapter: AdapterConfig) -> None:
        """Check that a run on this backbone, with such an adapter, can start from it.

        Raises:
            BackboneError: the backbone has other weights.
            ConfigError: its adapter has another shape.
        """
        own = self.record.backbone
        if backbone.sha256 != own.sha256:
            raise BackboneError(
                f"{self.option} was tuned on {own.folder}, this is {backbone.folder}: give the same weights with"
                " --backbone-weights"
            )
        before, free = self.record.adapter, ("dropout", "merge_scale", "activate")
        if before is None or {**vars(before), **dict.fromkeys(free)} != {**vars(adapter), **dict.fromkeys(free)}:
            raise ConfigError(f"{self.option} has the adapter {before}, this run {adapter}: make them equal")

    def load(self, model: Transformer) -> None:
        """Load its adapter into a model with a fresh one of the same shape; the head stays as it is."""
        state = task_state(model)
        load_task_state(model, {name: self.tensor(name) if ".adapter." in name else state[name] for name in state})

    def tensor(self, name: str) -> torch.Tensor:
        """One of its tensors."""
        return torch.tensor(self.bundle.tensors[name])


@dataclass(frozen=True)
class Extension(Beginning):
    """A task that gets more classes."""

    folder: Path
    samples: Samples
    exemplars: int | None
    """How many images of each old class to tune on; None is all that were kept."""

    @classmethod
    def open(cls, folder: Path, exemplars: int | None) -> Self:
        """Read what the run in a folder kept.

        Raises:
            MosaError: its files are missing or damaged, or it kept no images of some class.
        """
        option, bundle = f"--extend {folder}", Bundle.load(folder)
        record = bundle.record
        samples = read_samples(folder, record.preprocess.size)
        again = f"give the folder of the run that tuned it, with its {CALIBRATION}"
        if samples is None or not len(samples.classes) or not len(samples.labels):
            raise DataError(f"{option} keeps no images of its classes: {again}, or tune all classes anew")
        kept = np.bincount(samples.classes, minlength=len(record.classes))
        if len(kept) > len(record.classes) or int(samples.labels.max()) >= len(record.classes):
            raise DataError(f"{option} keeps images of other classes than its {len(record.classes)}: {again}")
        least = exemplars or 1
        few = [f"{name} ({count})" for name, count in zip(record.classes, kept, strict=True) if count < least]
        if few:
            raise DataError(
                f"{option} keeps fewer training images than {least} of {listed(few)}: lower --exemplars, or tune the"
                f" old classes with --exemplars {least}"
            )
        return cls(option, bundle, folder, samples, exemplars)

    def classes(self, added: Splits) -> tuple[str, ...]:
        """The old classes, then the new ones.

        Raises:
            ConfigError: some are there already.
            DataError: two names differ by case alone, or the like.
        """
        there = sorted({*self.record.classes} & {*added.classes})
        if there:
            raise ConfigError(f"{self.option} has {listed(there)} already: --data-dir should hold new classes alone")
        classes = (*self.record.classes, *added.classes)
        check_names(classes, f"{self.option} with --data-dir")
        return classes

    def load(self, model: Transformer) -> None:
        """Load its adapter and the rows of its head, which are the first of the model's."""
        super().load(model)
        head, state = f"{topology_of(model).head}.", task_state(model)
        for name in state:
            if name.startswith(head):
                old = self.tensor(name)
                state[name] = torch.cat([old.to(state[name]), state[name][len(old) :]])
        load_task_state(model, state)

    def joined(self, new: Dataset) -> Dataset:
        """The images of the new classes, and those that were kept of the old ones."""
        shift = len(self.record.classes)
        turns = turns_of(torch.from_numpy(self.samples.classes)).numpy()
        chosen = turns < (self.exemplars or len(turns))
        exemplars = self.images(self.samples.images[chosen], self.samples.classes[chosen], "images")
        old = self.images(self.samples.validation, self.samples.labels, "validation")
        line = (
            f"{self.option}: {len(exemplars)} exemplars of {shift} old classes to tune on, and {len(old)} of their"
            " validation images"
        )
        print(line)
        return Dataset(
            JoinedSet.of([new.train, resized(exemplars, new.train.take([0]).shape[1:3])], [shift, 0]),
            JoinedSet.of([new.validation, old], [shift, 0]),
            [*new.remarks, line],
        )

    def images(self, pixels: Pixels, labels: Labels, what: str) -> Images:
        """Images that were kept, as a set."""
        examples = [
            Example(f"{self.folder / CALIBRATION}/{what}/{i}", partial(encode, image), int(label))
            for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
        ]
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)), examples)

    def accuracy(self, model: Transformer, device: str, classes: int | None = None) -> float:
        """How many of the old validation images get their class, of the first `classes` or of all."""
        old = self.images(self.samples.validation, self.samples.labels, "validation")
        predicted = predict(model, old, self.record.preprocess, device)[:, :classes].argmax(1)
        return float((predicted == old.labels).double().mean())

    def note_seen(self, out: Path) -> None:
        """Add the images that the run before saw to those of the run in `out`."""
        run.add_seen(self.folder, out)


def beginning(config: TuneConfig) -> Beginning | None:
    """What a run starts from; None if it starts anew.

    Raises:
        MosaError: files of the run to start from are missing or damaged.
    """
    starting = config.starting
    if starting.extend is not None:
        return Extension.open(starting.extend, starting.exemplars)
    return None if starting.init is None else Beginning(starting.option, Bundle.load(starting.init))


@dataclass(frozen=True)
class Forgetting:
    """What a task with more classes has forgotten of the old ones, on their validation images."""

    before: float
    """The accuracy of the task as it was, which knew the old classes alone."""
    after: float
    images: int

    @property
    def metrics(self) -> dict[str, float]:
        """For `metrics.json`."""
        return {
            "old_classes_before": self.before,
            "old_classes_after": self.after,
            "forgetting": self.before - self.after,
        }

    def __str__(self) -> str:
        return (
            f"old classes: accuracy {self.before:.4f} before and {self.after:.4f} now on {self.images} of their"
            f" validation images, forgetting {self.before - self.after:+.4f}"
        )


def resized(images: Images, size: Sequence[int]) -> Images:
    """Images in another size (H, W): that of training images which are to be cropped."""
    height, width = size
    if tuple(images.pixels.shape[1:3]) == (height, width):
        return images
    pixels = [np.asarray(Image.fromarray(each).resize((width, height))) for each in images.pixels.numpy()]
    return replace(images, pixels=torch.from_numpy(np.stack(pixels)))
