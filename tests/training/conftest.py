"""What the tests of training share: a task of 60 digits, and folders of small images."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.backbones import embedded
from mosa_deploy.bundles.preprocess import Preprocess
from training import tasks
from training.config import Recipe, TuneConfig
from training.data import Images
from training.tasks.base import Example, Splits, stratified
from training.tasks.digits import Digits
from training.tune import tune

PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
"""Of the toy transformer; three different means and deviations, so that a mixed-up channel shows."""

PRETRAINED_CLASSES = ("bird", "cat", "ship")


class Few:
    """60 of the digits, 0 to 2."""

    name = "few"
    recipe = Recipe(backbone=embedded.NAME, bottleneck=2, scale=1.0, epochs=2, batch_size=8, lr=1e-2)
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        whole = Digits().splits(None, None)
        kept = [example for label in range(3) for example in whole.train if example.label == label]
        examples = [example for label in range(3) for example in of_class(kept, label)[:20]]
        return Splits(whole.classes[:3], *stratified(examples, (0.6, 0.2, 0.2), whole.classes[:3]), note="60/20/20")


def of_class(examples: list[Example], label: int) -> list[Example]:
    return [example for example in examples if example.label == label]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the small task, registered."""
    monkeypatch.setitem(tasks.TASKS, Few.name, Few())
    return Few.name


@pytest.fixture(scope="session")
def few_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small task by MoSA; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        return tune(TuneConfig(task=Few.name, out=tmp_path_factory.mktemp("runs") / Few.name, device="cpu"))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file in a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def write_jpegs(folder: Path, counts: Mapping[str, int], size: int = 8) -> Path:
    """`<folder>/<class>/<class>_<i>.jpg`; a class is a grey level with noise."""
    rng = np.random.default_rng(0)
    for level, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 60, (size, size, 3))
            pixels = (noise + 150 * level // max(1, len(counts) - 1)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{i + 1}.jpg")
    return folder


def random_images(count: int, classes: int, seed: int = 0) -> Images:
    """Noise of 16 x 16, a little brighter from class to class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 160, (count, 16, 16, 3), generator=generator)
    pixels = (noise + 20 * labels[:, None, None, None]).to(torch.uint8)
    return Images(pixels, labels, [Example(f"noise/{i}", bytes, int(label)) for i, label in enumerate(labels)])


Toy = Callable[..., VisionTransformer]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 9 test images."""
    folder = tmp_path_factory.mktemp("images")
    write_jpegs(folder / "train", dict.fromkeys(PRETRAINED_CLASSES, 8), size=32)
    write_jpegs(folder / "test", dict.fromkeys(PRETRAINED_CLASSES, 3), size=32)
    return folder
