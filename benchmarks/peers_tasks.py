"""The tasks that every server of `benchmarks.peers` answers, exported once per model by this project's own export.

They are low-rank tasks on the fused qkv of every block (LoRA, rank 16), so that PEFT can hold the same ones. Their
adapters are random and their heads are fitted to known answers, see `tests.support.tasks`. Tasks after the first few
are copies of these under other names: nothing tells a server so.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers_peft import ADAPTER, TARGET, write_adapter
from export.export import export
from export.options import ExportConfig, FileOptions
from mosa_deploy.backbones.embedded import NAME as EMBEDDED
from mosa_deploy.backbones.load import Weights
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.calibration import Samples, write_samples
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.bundles.store_layout import BACKBONES, StoreLayout, task_folder
from tests.support.tasks import CLASSES, TaskMaker, picture, renamed

RANK = 16
IMAGES = 64
"""Images that the heads are fitted to, that int8 is calibrated on, and that are sent."""
SIZE = (320, 240)


@dataclass(frozen=True)
class Model:
    """A backbone at one size of images."""

    name: str
    """In results, and the name of its file there."""
    backbone: str
    side: int | None
    reads_file: bool
    """Whether its weights come from `--weights`; else they are random, or those of the package."""
    distinct: int = 8
    """How many tasks are made; the others are copies of them. An int8 export takes minutes at 224 px."""

    @property
    def title(self) -> str:
        """What it is, in a heading."""
        source = "" if self.backbone == EMBEDDED else ", weights from a file" if self.reads_file else ", random weights"
        return f"{self.backbone}{f' at {self.side} px' if self.side else ''}{source}"


DINOV2 = "vit_small_patch14_dinov2.lvd142m"

MODELS = {
    model.name: model
    for model in (
        Model("dinov2-98", DINOV2, 98, reads_file=True),
        Model("dinov2-224", DINOV2, 224, reads_file=True, distinct=2),
        Model("vit-b16", "vit_base_patch16_224", 224, reads_file=False, distinct=2),
        Model("embedded", EMBEDDED, None, reads_file=False),
    )
}


@dataclass(frozen=True)
class Exported:
    """The exported tasks of a model, and the images whose answers are known."""

    root: Path
    """The folder of the store."""
    weights: Path | None
    images: tuple[bytes, ...]
    distinct: int

    def shift(self, names: Sequence[str]) -> dict[str, int]:
        """Task -> what is added to an image's number to get the number of its class."""
        return {name: number % self.distinct for number, name in enumerate(names)}

    def view(self, folder: Path, count: int) -> list[str]:
        """Make a store of `count` tasks in `folder` and return their names. Its large files are links."""
        folder.mkdir(parents=True)
        shutil.copytree(self.root / BACKBONES, folder / BACKBONES, copy_function=os.link)
        names = [f"task-{i}" for i in range(count)]
        for i, name in enumerate(names):
            self.add(folder, name, i % self.distinct)
        return names

    def add(self, store: Path, name: str, source: int = 0) -> None:
        """Put one of the tasks into a store under another name."""
        shutil.copytree(self.root / task_folder(f"task-{source}"), store / task_folder(name), copy_function=os.link)
        record = store / task_folder(name) / RECORD
        content = renamed(self.archive(source), name).record
        # The file is a link: it would be changed in the other store too.
        record.unlink()
        record.write_bytes(content)

    def archive(self, source: int = 0, name: str | None = None) -> Archive:
        """One of the tasks as a `.mosa` file, for an upload."""
        found = Archive.of(StoreLayout(self.root).task(f"task-{source}"))
        return renamed(found, name) if name else found


def make(model: Model, folder: Path, tasks: int, weights: Path | None, precisions: str) -> Exported:
    """Make and export the distinct tasks of a model, or find those that are in `folder` since an earlier run.

    Raises:
        MosaError: the weights do not fit, or the export fails.
    """
    file = weights if model.reads_file else None
    images = tuple(picture(seed, kind="jpeg", size=SIZE) for seed in range(IMAGES))
    given = Weights("file", file) if file else None
    distinct, store = min(model.distinct, tasks), folder / "store"
    done = folder / f"{distinct}-{precisions}"
    if done.exists():
        return Exported(store, file, images, distinct)
    # The export finds the graphs that are traced here.
    maker = TaskMaker(store, model.backbone, images, given, model.side)
    for seed in range(distinct):
        name, run = f"task-{seed}", folder / "runs" / f"task-{seed}"
        bundle = maker.make(name, seed, RANK, "lora", targets=(TARGET,)).bundle()
        bundle.save(run)
        write_samples(run, samples(maker, seed))
        files = FileOptions(precision=precisions)
        export(ExportConfig(bundle=run, out=store, backbone_weights=file, files=files))
        write_adapter(bundle, StoreLayout(store).task(name) / ADAPTER)
    done.touch()
    return Exported(store, file, images, distinct)


def samples(maker: TaskMaker, seed: int) -> Samples:
    """The images as a run leaves them: to calibrate int8, and to compare it with fp32."""
    pixels = np.stack([maker.preprocess.read(content) for content in maker.images])
    return Samples(pixels, pixels, (np.arange(len(pixels)) + seed) % CLASSES)
