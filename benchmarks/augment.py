"""Compare training with augmented images and with images as they are: `python -m benchmarks.augment`.

The trainers go through the same few batches in turn, in one process and in a new random order each round; their speeds
are compared round by round, with 95 % bootstrap intervals. Beside them stands what an image costs by itself. On a CPU
the images are changed between the steps, on a GPU by worker processes ahead of them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.step import make_trainers, noise, ratio_text, where
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.augment import generators, margin
from training.devices import choose_device
from training.loop import Trainer
from training.recipe import Recipe
from training.tune_options import StreamOptions
from training.workers import Workers

NONE = "none"

AIM = 0.9
"""The smallest speed of --augment crop, as a share of that without augmentation."""


@dataclass(frozen=True)
class Config:
    """Measure the speed of training with augmentation."""

    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    image_size: int | None = 98
    batch_size: int = 16
    batches: int = 2
    """Batches that each trainer goes through in a round."""
    rounds: int = 30
    device: str = "auto"
    precision: str = "auto"
    out: Path = Path("benchmarks/results/augment.md")


def recipes(config: Config) -> dict[str, Recipe]:
    """Name -> recipe."""
    none = Recipe(config.backbone, batch_size=config.batch_size, experts=2, activate="balanced")
    crop = replace(none, augment="crop")
    return {
        NONE: none,
        "flip": replace(none, augment="flip"),
        "crop": crop,
        "auto": replace(none, augment="auto"),
        "randaug": replace(none, augment="randaug"),
        "crop, erase 0.25": replace(crop, erase=0.25),
        "crop, mixup 0.2": replace(crop, mixup=0.2),
        "crop, cutmix 1": replace(crop, cutmix=1.0),
    }


def trainers(config: Config, device: str, workers: Workers) -> dict[str, Trainer]:
    """Name -> trainer on images of noise, which have a margin if they are cropped."""
    kinds = {name: (Trainer, recipe) for name, recipe in recipes(config).items()}
    found = make_trainers(kinds, config.image_size, device, config.precision)
    for trainer in found.values():
        size = (margin(trainer.preprocess, trainer.recipe.augment) or trainer.preprocess).size
        trainer.train, trainer.steps = noise(size, config.batches * config.batch_size), config.batches
        trainer.computing = replace(trainer.computing, workers=workers)
    return found


def measure(found: Mapping[str, Trainer], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Name -> images per second of each round."""
    rng, speeds = np.random.default_rng(0), dict[str, list[float]]()
    for trainer in found.values():
        trainer.run_epoch(0)
    for _ in range(rounds):
        for name in rng.permutation(list(found)):
            speeds.setdefault(name, []).append(found[name].run_epoch(0)["images_per_second"])
    return {name: np.array(speeds[name]) for name in found}


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    """How long something takes, the median of some times."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1000 * float(np.median(taken))


def cost(trainer: Trainer) -> float:
    """Milliseconds that the changes of one image take, without mixing."""
    changes, pixels = trainer.augmentation.changes, noise_of(trainer)
    return 0.0 if changes is None else milliseconds(lambda: changes(pixels, range(len(pixels)))) / len(pixels)


def noise_of(trainer: Trainer) -> NDArray[np.uint8]:
    """A trainer's images."""
    pixels: NDArray[np.uint8] = trainer.train.settled().take(range(len(trainer.train))).numpy()
    return pixels


def seeding(images: int) -> float:
    """Milliseconds per image that seeding the global generators takes, and putting them back after a batch."""

    def work() -> None:
        with generators() as begin:
            for seed in range(images):
                begin(seed)

    return milliseconds(work, 50) / images


def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.augment")
    device = choose_device(config.device)
    with Workers(StreamOptions().processes if device == "cuda" else 0) as workers:
        found = trainers(config, device, workers)
        speeds = measure(found, config.rounds)
    rows = [
        (name, f"{np.median(speeds[name]):.1f}", ratio_text(speeds[name] / speeds[NONE]), f"{cost(trainer):.2f}")
        for name, trainer in found.items()
    ]
    columns = ("augmentation", "images/s", "speed / none (95 %)", "changes alone, ms per image")
    text = table(columns, rows)
    text += (
        f"\n\nThe aim is {AIM} with crop. Seeding the generators and putting them back, which is part of every change:"
        f" {seeding(config.batch_size):.3f} ms per image."
    )
    pixels, _ = found[NONE].preprocess.size
    setting = (
        f"{config.backbone} at {pixels} px, MoSA balanced, batch {config.batch_size}, {config.batches} batches in each"
        f" of {config.rounds} rounds"
    )
    head = provenance("benchmarks.augment", where(device, config.precision))
    write_text(config.out, f"# Augmentation\n\n{head}\n\n{setting}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
