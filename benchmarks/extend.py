"""A task with more classes against one tuned on all of them: `python -m benchmarks.extend --data-dir ucmerced.tar ...`.

For each seed the classes are drawn in another order. The first are tuned as a task, which then gets the others by
`--extend`, and all of them are tuned from nothing as well, with the same adapter. Both are timed whole, in seconds of
the processor, which other load stretches less than those of a clock, and answer the same test images. What was
forgotten is the accuracy on the old classes before, minus that afterwards. The target is to be within 2 points of
tuning anew, in at most half of the time.

With the ViT-S/14 at 98 px, adapters in the last four blocks and three seeds it takes about an hour on two cores.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro

from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import mean_interval, ratio_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.config import TuneConfig
from training.loop import predict
from training.reading import decode_all
from training.tasks import find
from training.tasks.base import Example, Splits
from training.tune import tune
from training.tune_options import DISTIL, StartOptions


@dataclass(frozen=True)
class Config:
    """Compare a task that gets more classes with one that is tuned on all of them."""

    data_dir: Path
    """Images in one folder per class, or an archive of them."""
    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    backbone_weights: Path | None = None
    image_size: int = 98
    adapt_blocks: int = 4
    """The blocks before the last ones are computed once per run."""
    old: int = 15
    """The number of classes that come first."""
    epochs: int | None = None
    """Those of every run from nothing; adding classes takes half of them. Default: the preset's."""
    exemplars: int | None = None
    """Images of each old class to tune on. Default: all that a run keeps."""
    distil: float = DISTIL
    """The weight of the distillation loss where classes are added."""
    seeds: int = 3
    runs: Path | None = None
    """Keep the runs in this folder, and go on where it stopped; the times of finished runs are read from it."""
    out: Path = Path("benchmarks/results/extend")


@dataclass(frozen=True)
class Row:
    """One seed. Accuracies are on test images, in percent."""

    seed: int
    before: float
    """The old task on the old classes."""
    extended: float
    """The task with more classes, on all of them."""
    anew: float
    """The task tuned on all classes, likewise."""
    after: float
    """The task with more classes, on the images of the old classes."""
    anew_old: float
    """The task tuned on all classes, likewise."""
    seconds: float
    """What `mosa tune --extend` took, in seconds of the processor."""
    anew_seconds: float
    images: int
    """Test images."""

    @property
    def forgetting(self) -> float:
        """Points of accuracy on the old classes that were lost."""
        return self.before - self.after


@dataclass(frozen=True)
class Study:
    """The runs of one seed."""

    config: Config
    seed: int
    folder: Path
    splits: Splits = field(repr=False)

    @property
    def order(self) -> list[str]:
        """The classes, the old ones first."""
        drawn = np.random.default_rng(self.seed).permutation(len(self.splits.classes))
        return [self.splits.classes[k] for k in drawn]

    def labels(self, name: str, classes: Sequence[str]) -> Path:
        """Write a table of the images of some classes, with their sets."""
        rows = [
            (example.name, self.splits.name_of(example.label), part)
            for part, examples in self.splits.sets().items()
            for example in examples
            if self.splits.name_of(example.label) in classes
        ]
        path = self.folder / f"{name}.csv"
        write_csv(path, ("file", "label", "split"), rows)
        return path

    def tuned(self, name: str, classes: Sequence[str], extend: Path | None = None) -> tuple[Path, float]:
        """Tune a run on some classes; returns its folder and the seconds of the processor that it took."""
        out, clock = self.folder / name, self.folder / f"{name}.seconds"
        if clock.is_file():
            return out, float(clock.read_text())
        config = self.config
        start = processor_seconds()
        tune(
            TuneConfig(
                name="study",
                data_dir=config.data_dir,
                labels=(self.labels(name, classes),),
                backbone=config.backbone,
                backbone_weights=config.backbone_weights,
                image_size=config.image_size,
                adapt_blocks=config.adapt_blocks,
                epochs=config.epochs // 2 if extend and config.epochs else config.epochs,
                seed=self.seed,
                out=out,
                skip_duplicates=True,
                starting=StartOptions(
                    extend=extend, exemplars=config.exemplars, distil=config.distil if extend else DISTIL
                ),
            )
        )
        seconds = processor_seconds() - start
        write_text(clock, f"{seconds:.1f}\n")
        return out, seconds

    def accuracies(self, run: Path, old: Sequence[str]) -> tuple[float, float]:
        """The accuracy of a run on the test images of its classes, and on those of the old ones."""
        bundle = Bundle.load(run)
        record, numbers = bundle.record, {name: k for k, name in enumerate(bundle.record.classes)}
        model = restore(bundle, Weights.choose(self.config.backbone_weights, random=False))
        named = [(example, self.splits.name_of(example.label)) for example in self.splits.test]
        asked: list[Example] = [example._replace(label=numbers[name]) for example, name in named if name in numbers]
        images = decode_all(asked, record.preprocess, "test")
        right = (predict(model, images, record.preprocess, "cpu").argmax(1) == images.labels).double()
        of_old = torch.tensor([record.classes[int(label)] in old for label in images.labels])
        return 100 * float(right.mean()), 100 * float(right[of_old].mean())

    def row(self) -> Row:
        """Tune and measure."""
        old, new = self.order[: self.config.old], self.order[self.config.old :]
        first, _ = self.tuned("old", old)
        extended, seconds = self.tuned("extended", new, extend=first)
        anew, anew_seconds = self.tuned("anew", self.order)
        before, _ = self.accuracies(first, old)
        found, after = self.accuracies(extended, old)
        whole, anew_old = self.accuracies(anew, old)
        return Row(self.seed, before, found, whole, after, anew_old, seconds, anew_seconds, len(self.splits.test))


def processor_seconds() -> float:
    """The seconds of the processor that this process has taken, those of its children that have ended included."""
    took = psutil.Process().cpu_times()
    return float(took.user + took.system + took.children_user + took.children_system)


def report(config: Config, rows: Sequence[Row], classes: int) -> str:
    """The results in words."""
    heads = ("seed", "old classes before", "after", "forgotten", "all classes, extended", "anew", "seconds", "anew")
    lines = [
        (
            str(row.seed),
            *(f"{value:.2f}" for value in (row.before, row.after, row.forgetting, row.extended, row.anew)),
            *(f"{value:.0f}" for value in (row.seconds, row.anew_seconds)),
        )
        for row in rows
    ]
    difference = mean_interval([row.extended - row.anew for row in rows])
    old = mean_interval([row.after - row.anew_old for row in rows])
    forgotten = mean_interval([row.forgetting for row in rows])
    ratio = ratio_interval([row.seconds / row.anew_seconds for row in rows])
    exemplars = "all that a run keeps" if config.exemplars is None else config.exemplars
    return "\n\n".join(
        [
            "# A task with more classes",
            provenance("benchmarks.extend"),
            f"From {config.old} to {classes} classes; {config.backbone} at {config.image_size} px, adapters in the last"
            f" {config.adapt_blocks} blocks, exemplars of each old class: {exemplars}. Accuracy in percent on"
            f" {rows[0].images} test images, and the seconds of the processor that the whole command took.",
            table(heads, lines, align="rrrrrrrr"),
            f"Extended minus anew, all classes: {difference:+z.2f} points; on the old classes alone:"
            f" {old:+z.2f}. Forgotten: {forgotten:+z.2f} points, of which a part is that there are more classes"
            " to choose from. Seconds of the processor, extending / tuning anew:"
            f" {ratio:.2f}. The target: at least -2 points, at most 0.50.",
        ]
    )


def measure(config: Config, folder: Path) -> list[Row]:
    """The rows of all seeds."""
    splits = find("folder").splits(config.data_dir, None)
    rows = []
    for seed in range(config.seeds):
        rows.append(Study(config, seed, folder / str(seed), splits).row())
        print(rows[-1], flush=True)
    write_csv(config.out / "extend.csv", tuple(vars(rows[0])), [tuple(vars(row).values()) for row in rows])
    text = report(config, rows, len(splits.classes))
    write_text(config.out / "extend.md", f"{text}\n")
    print(text)
    return rows


@command
def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.extend")
    if config.runs is not None:
        measure(config, config.runs)
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(config, Path(scratch))


if __name__ == "__main__":
    main()
