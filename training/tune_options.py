"""Groups of options of `mosa tune` that belong together; each checks itself."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mosa_deploy.bundles.decode import PILLOW_PIXELS
from mosa_deploy.errors import ConfigError, unknown_name

Balance = Literal["none", "loss", "sampler"]
"""Whether all classes weigh the same: not, in the loss, or by how often they are drawn."""

Select = Literal["accuracy", "balanced", "loss", "map"]
"""What chooses the best epoch on validation: accuracy, its mean over the classes, the loss, or of several labels per
image the mean average precision."""

Loss = Literal["ce", "bce", "asymmetric"]
"""What is minimised: the cross entropy of one class per image, or of several labels the binary cross entropies or the
asymmetric loss (arXiv 2009.14119)."""


Augment = Literal["none", "flip", "crop", "auto", "randaug"]
"""What changes training images."""


SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau")
"""timm's schedules of the learning rate."""


@dataclass(frozen=True)
class ReadOptions:
    """Which images are left out."""

    max_unreadable: str = "1%"
    """How many images may be unreadable, of all sets together: a percentage or a number. They are listed and left
    out."""
    max_pixels: int = PILLOW_PIXELS
    """An image with more pixels counts as unreadable; nothing of it is decoded."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = [] if self.max_pixels >= 1 else [f"--max-pixels {self.max_pixels}: at least 1"]
        given = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?)%", self.max_unreadable.strip())
        if given is None or (given[2] and float(given[2]) > 100):
            faults.append(
                f"--max-unreadable {self.max_unreadable}: give a percentage such as 1%, or a number of images"
            )
        if faults:
            raise ConfigError("; ".join(faults))

    def allowed(self, total: int) -> int:
        """The number of unreadable images that is allowed of `total`."""
        text = self.max_unreadable.strip()
        # In floating point 29 % of 100 is slightly below 29.
        return int(round(float(text[:-1]) * total / 100, 6)) if text.endswith("%") else int(text)


@dataclass(frozen=True)
class StreamOptions:
    """How sets are read that are too large for memory."""

    cache: Path | None = None
    """Decode images into a cache in this folder while they are used, instead of into memory. Default: sets of more than
    1 GB of pixels, in ~/.cache/mosa-deploy/images."""
    cache_size: float = 50.0
    """The most that the cache may hold, in GB."""
    workers: int | None = None
    """Processes that decode images into the cache, and that augment images ahead of a GPU. Default: one per core, at
    most 8."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if not self.cache_size > 0:
            faults.append(f"--cache-size {self.cache_size:g}: above 0, in GB")
        if self.workers is not None and self.workers < 1:
            faults.append(f"--workers {self.workers}: at least 1")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def processes(self) -> int:
        """The number of worker processes."""
        return self.workers or min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class AugmentOptions:
    """How training images are changed each time they are seen."""

    augment: str | None = None
    """none, flip (left and right), crop (a random part of the image, and flips), or one of timm's policies on top of
    crop: auto (AutoAugment) or randaug (RandAugment)."""
    erase: float | None = None
    """Probability that a random rectangle of an image is erased."""
    mixup: float | None = None
    """Alpha of mixup, e.g. 0.2: blends of two images, with blended labels."""
    cutmix: float | None = None
    """Alpha of CutMix, e.g. 1.0: a rectangle of one image in another, with blended labels."""

    def __post_init__(self) -> None:
        """Raises ConfigError if there is no such augmentation; the nearest ones are named."""
        if self.augment is not None and self.augment not in get_args(Augment):
            raise ConfigError(unknown_name("augmentation", self.augment, get_args(Augment)))


@dataclass(frozen=True)
class OptimOptions:
    """How the weights are updated."""

    opt: str | None = None
    """Name of one of timm's optimisers, such as adamw, adamp, adan, lion, muon or sgd. Each wants an --lr of its
    own."""
    sched: str | None = None
    """Name of one of timm's schedules of the learning rate: cosine, tanh, step, multistep, poly, wsd, rsqrt, constant
    or plateau."""
    clip_grad: float | None = None
    """Largest norm of the gradient of a step; 0 does not clip it."""
    patience: int | None = None
    """Stop after this many epochs in a row that are not better, by what --select names, than the best one; 0 runs all
    epochs. The schedule stays that of all epochs."""
    head_dropout: float | None = None
    """Probability with which training drops each feature that the head reads."""
    head_samples: int | None = None
    """Number of dropout samples of the head that share one pass through the backbone; their losses are averaged."""
    layer_decay: float | None = None
    """For full and bitfit: factor on the learning rate from each block to the one before it."""
    drop_path: float | None = None
    """For full and bitfit: probability of skipping a block's branches in training. It rises from 0 in the first block
    to this value in the last one."""


DISTIL = 1.0
"""The weight of the distillation loss where a task gets more classes."""


@dataclass(frozen=True)
class StartOptions:
    """Start from the run of another task, or of the same one with fewer classes."""

    init: Path | None = None
    """Start from the adapter of the run in this folder, on the same backbone; the head starts anew."""
    extend: Path | None = None
    """Add the classes in --data-dir to the task of the run in this folder: its adapter and the rows of its head go on,
    with images of the old classes that the run kept."""
    exemplars: int | None = None
    """With --extend, the number of images of each old class to tune on. Default: all that its run kept. In every run,
    the least number of training images of each class to keep for a later --extend. Default: 256 images in all."""
    distil: float = DISTIL
    """With --extend, the weight of the distillation loss, which keeps the logits of the old classes near those of the
    task as it was. 0 leaves it out."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if self.init is not None and self.extend is not None:
            faults.append("--init and --extend exclude each other: drop one")
        if self.exemplars is not None and self.exemplars < 1:
            faults.append(f"--exemplars {self.exemplars}: at least 1")
        if not 0 <= self.distil < math.inf:
            faults.append(f"--distil {self.distil:g}: at least 0")
        if self.extend is None and self.distil != DISTIL:
            faults.append(f"--distil {self.distil:g} goes with --extend: leave it out")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def least_classes(self) -> int:
        """The smallest number of classes that the images may have."""
        return 2 if self.extend is None else 1

    @property
    def folder(self) -> Path | None:
        """The folder of the run to start from."""
        return self.init or self.extend

    @property
    def option(self) -> str:
        """The option that names it, with the folder."""
        return f"--init {self.init}" if self.init is not None else f"--extend {self.extend}"


TEMPERATURE = 2.0
"""That of the sampling in joint runs."""


@dataclass(frozen=True)
class JointOptions:
    """Several tasks at once, with one adapter and a head for each."""

    joint: Path | None = None
    """TOML file of tasks to tune at once: their bundles share one adapter. Options of the whole run stand in [defaults]
    or on the command line, those of a task's images in [tasks.NAME]."""
    sampling_temperature: float = TEMPERATURE
    """With --joint, T: a task of n images is drawn in proportion to n^(1/T). At 1 each image is seen once per epoch;
    the higher, the more alike are the tasks."""

    def __post_init__(self) -> None:
        """Raises ConfigError if the temperature has no meaning."""
        if not 0 < self.sampling_temperature < math.inf:
            raise ConfigError(f"--sampling-temperature {self.sampling_temperature:g}: above 0")
        if self.joint is None and self.sampling_temperature != TEMPERATURE:
            raise ConfigError(f"--sampling-temperature {self.sampling_temperature:g} goes with --joint: leave it out")


@dataclass(frozen=True)
class LabelOptions:
    """Several labels per image, in the task folder."""

    multi_label: bool = False
    """An image may have several labels, or none. They stand in --labels: in one column, as cat|dog, in one column of 0
    and 1 for each label, or in one row for each."""
    loss: str | None = None
    """bce (binary cross entropy of each label) or asymmetric (which looks less at the many labels that an image has
    not), for several labels per image."""

    def __post_init__(self) -> None:
        """Raises ConfigError if there is no such loss; the nearest ones are named."""
        if self.loss is not None and self.loss not in get_args(Loss)[1:]:
            raise ConfigError(unknown_name("loss", self.loss, get_args(Loss)[1:]))

    def faults(self, method: str, multi_label: bool) -> list[str]:
        """What does not fit a task that has several labels per image, or has not."""
        if multi_label and method == "auto":
            return ["--method auto chooses by accuracy, which several labels per image have not: name a method"]
        if self.loss is not None and not multi_label:
            return [f"--loss {self.loss} is for several labels per image: add --multi-label"]
        return []


@dataclass(frozen=True)
class ExecutionOptions:
    """How a step is computed. The result is the same to rounding, so --resume may change these."""

    accumulate: int = 1
    """Compute each batch in this many parts, one after the other, in less memory: the same update, but for dropout."""
    checkpointing: bool = False
    """Compute the activations in a block again in the backward pass, instead of keeping them: less memory, more
    time."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: the first steps take a minute or more, later ones a little less
    than without."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate {self.accumulate}: at least 1")
