"""Images for tests: folders of small JPEGs, noise, and data sets on disk."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mosa_deploy.bundles.preprocess import Preprocess
from training.data import Images
from training.tasks.base import Example

DATA = Path(os.environ.get("MOSA_TEST_DATA", "../shared/data"))

PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
"""Preprocessing of the toy transformer. The channels have different means, so that a test notices swapped channels."""


PRETRAINED_CLASSES = ("bird", "cat", "ship")


def write_jpegs(folder: Path, counts: Mapping[str, int], size: int = 8) -> Path:
    """Write `<folder>/<class>/<class>_<i>.jpg`, where each class is a grey level with noise."""
    rng = np.random.default_rng(0)
    for level, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 60, (size, size, 3))
            pixels = (noise + 150 * level // max(1, len(counts) - 1)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{i + 1}.jpg")
    return folder


def jpeg(level: int = 128, size: int = 8) -> bytes:
    """An encoded image of one grey level."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    """Write a small JPEG under each of these paths below a folder, whatever its suffix."""
    content = jpeg()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def numbered(pattern: str, count: int) -> list[str]:
    """`oak/{}.jpg` -> `oak/0.jpg`, `oak/1.jpg` and so on."""
    return [pattern.format(i) for i in range(count)]


def random_images(count: int, classes: int, seed: int = 0) -> Images:
    """Noise images of 16 x 16 pixels, slightly brighter with each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 160, (count, 16, 16, 3), generator=generator)
    pixels = (noise + 20 * labels[:, None, None, None]).to(torch.uint8)
    return Images(pixels, labels, [Example(f"noise/{i}", bytes, int(label)) for i, label in enumerate(labels)])
