"""Compare training with adapters in the last K blocks and in all: `python -m benchmarks.prefix`.

The tokens before the last K blocks are cached, as `mosa tune --adapt-blocks K` does it. The trainers make a step of the
same batch in turn, in one process and in a new random order each round; the speeds are compared round by round, with
95 % bootstrap intervals. The time of filling the cache stands beside them: it is spent once, not in every epoch.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.step import make_trainers, measure, noise, ratio_text, where
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.devices import choose_device
from training.entry import Entry
from training.loop import Trainer
from training.recipe import Recipe

TARGET = 0.9
"""The smallest aim: this share of the speed that K of all blocks would have if nothing else cost time."""


@dataclass(frozen=True)
class Config:
    """Measure the speed of training with adapters in the last blocks alone."""

    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    image_size: int | None = 98
    blocks: tuple[int, ...] = (4, 6, 8)
    batch_size: int = 16
    rounds: int = 40
    device: str = "auto"
    precision: str = "bf16"
    out: Path = Path("benchmarks/results/prefix.md")


def milliseconds_per_image(trainer: Trainer, preprocess: Preprocess, device: str) -> float:
    """The time of computing an image's tokens once, by the median of five batches."""
    entry, images, taken = Entry.before_adapters(trainer.model, preprocess), noise(preprocess.size, 32), []
    for _ in range(5):
        start = time.perf_counter()
        with trainer.step.autocast:
            entry.prepared(images, device)
        taken.append(time.perf_counter() - start)
    return 1000 * float(np.median(taken)) / len(images)


def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.prefix")
    device = choose_device(config.device)
    whole = Recipe(config.backbone, batch_size=config.batch_size, activate="balanced")
    recipes = {"all": whole} | {f"last {k}": replace(whole, adapt_blocks=k) for k in config.blocks}
    kinds = {name: (Trainer, recipe) for name, recipe in recipes.items()}
    found = make_trainers(kinds, config.image_size, device, config.precision)
    times = measure(found, config.rounds, device)
    depth = len(list(found["all"].model.get_submodule("blocks").children()))
    rows = []
    for name, trainer in found.items():
        adapted = trainer.recipe.adapt_blocks or depth
        filling = milliseconds_per_image(trainer, trainer.preprocess, device) if name != "all" else 0.0
        rows.append(
            (
                name,
                f"{config.batch_size / float(np.median(times[name])):.1f}",
                ratio_text(times["all"] / times[name]),
                f"{TARGET * depth / adapted:.2f}" if name != "all" else "",
                f"{filling:.1f}" if name != "all" else "",
            )
        )
    columns = ("adapted blocks", "images/s", "speed / all blocks (95 %)", "aim", "filling the cache, ms per image")
    text = table(columns, rows)
    pixels, _ = found["all"].preprocess.size
    setting = f"{config.backbone} at {pixels} px, MoSA balanced, batch {config.batch_size}, {config.rounds} rounds"
    head = provenance("benchmarks.prefix", where(device, config.precision))
    write_text(config.out, f"# Adapters in the last blocks\n\n{head}\n\n{setting}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
