"""CIFAR-10 with few images: 20 per class to train on, 20 per class for validation, and the whole test set.

    mosa tune --task cifar10 --data-dir cifar10.tar.gz

The archive or folder holds `{train,test}/<class>/<file>`. The two small sets are drawn from `train`; `--split second`
draws others. On the embedded backbone this does not test transfer, since that was pre-trained on the same training
images. Test accuracy there, mean of 5 seeds: linear 0.801, dense adapter 0.783, MoSA with 4 experts 0.790. On the
preset's backbone at 98 px, 10 images per class of the second draw: 0.480, the best probe 0.495.
A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from pathlib import Path
from random import Random

from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.seeds import derive
from training.tasks.base import REAL, SPLIT_SEED, Example, Splits
from training.tasks.classes import read_labelled_sets
from training.tasks.source import Source

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In the order of the embedded backbone's own head."""

EACH = 20
"""Number of images per class in train, and in validation."""

DRAWS = ("first", "second")
"""The values of --split: which images of a class are drawn. No image is in both."""


class Cifar10:
    """10 classes of animals and vehicles, 32 x 32."""

    name = "cifar10"
    recipe = REAL
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`; `split` is `first`, the default, or `second`."""
        if data_dir is None:
            raise DataError("--task cifar10 needs --data-dir: give cifar10.tar.gz, or its folder of train and test")
        if split is not None and split not in DRAWS:
            raise ConfigError(f"--split {split}: cifar10 takes {' or '.join(DRAWS)}")
        skipped = 2 * EACH * DRAWS.index(split or DRAWS[0])
        source = Source.open(data_dir).unwrapped()
        labelled = read_labelled_sets(source)
        classes, read = labelled.classes, labelled.sets
        if not {"train", "test"} <= read.keys():
            raise DataError(f"{source.name} lacks train/<class>/<file> or test/<class>/<file>: give all of CIFAR-10")
        train: list[Example] = []
        validation: list[Example] = []
        for label, name in enumerate(classes):
            images = [example for example in read["train"] if example.label == label]
            needed = skipped + 2 * EACH
            if len(images) < needed:
                few = f"class {name!r} has {len(images)} training images, of which {needed} are to be drawn"
                raise DataError(f"{source.name}: {few}: give all of CIFAR-10")
            drawn = Random(derive(SPLIT_SEED, "cifar10", label)).sample(images, needed)[skipped:]
            train, validation = train + drawn[:EACH], validation + drawn[EACH:]
        note = (
            f"{EACH} images per class to train on and {EACH} for validation, drawn from train; on the embedded"
            " backbone, which was pre-trained on CIFAR-10's training images, this does not test transfer"
        )
        return Splits(classes, train, validation, read["test"], note=note)
