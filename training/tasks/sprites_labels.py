"""Sprites with several labels per image: which shape, how large, and in which quadrant?

    mosa tune --task sprites-labels

The images are those of `training.tasks.sprites`, 800 / 200 / 2,000 by index, with nine labels: one of three shapes, one
of two sizes and one of four quadrants, so each image has three. They are learned as nine independent ones.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from training.recipe import with_labels
from training.tasks.base import Example, Splits
from training.tasks.sprites import COUNTS, POSITIONS, RECIPE, SCALES, SHAPES, Sprite, read, sprite

SIZES = ("small", "large")
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
CLASSES = (*SHAPES, *SIZES, *QUADRANTS)


def labels_of(factors: Sprite) -> tuple[int, ...]:
    """The numbers of an image's labels among `CLASSES`."""
    size = factors.scale * len(SIZES) // SCALES
    right, lower = (position * 2 // POSITIONS for position in (factors.x, factors.y))
    return factors.shape, len(SHAPES) + size, len(SHAPES) + len(SIZES) + 2 * lower + right


class SpritesLabels:
    """Nine labels, of which each image has three."""

    name = "sprites-labels"
    recipe = with_labels(replace(RECIPE, epochs=20))
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`; `data_dir` and `split` are ignored."""
        sets: dict[str, list[Example]] = {}
        start = 0
        for name, count in COUNTS.items():
            indices = range(start, start + count)
            sets[name] = [Example(f"sprite/{i}", partial(read, i), labels_of(sprite(i))) for i in indices]
            start += count
        note = "800/200/2,000 by index"
        return Splits(CLASSES, sets["train"], sets["validation"], sets["test"], note, multi_label=True)
