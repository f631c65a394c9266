"""Compare a streamed set of images with one in memory: `python -m benchmarks.input`, or with `--quick` in a minute.

Generates JPEGs in a temporary folder and tunes one epoch on them three times, each in a process of its own: with all
images decoded into memory first, streamed into an empty cache, and streamed from the cache that is full then. Memory is
the peak of the anonymous memory (RssAnon) of the process and its workers together, read several times a second. Time
runs from the first image that is read, and ends when validation has been decoded too.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import timm.data
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mosa_deploy.adapters.attach import attach
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.config import TuneConfig
from training.data import Batch
from training.dataset import Data, Dataset, read_dataset
from training.loop import Trainer
from training.reading import Reader
from training.recipe import Recipe, adapter_config
from training.step import Step
from training.tasks.base import Splits
from training.tasks.folder import Folder
from training.tune_options import StreamOptions
from training.workers import Workers

KINDS = {"memory": "all in memory", "cold": "streamed, empty cache", "warm": "streamed, full cache"}

CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Measure memory, speed and the time to the first step of streamed images."""

    images: int = 20_000
    size: int = 224
    workers: int = 2
    backbone: str = "vit_small_patch32_224"
    """A timm model; its weights are random."""
    passes: int = 1
    batch_size: int = 64
    quick: bool = False
    """Only see whether it works: 200 images, and nothing is written."""
    out: Path = Path("benchmarks/results/input.md")
    kind: str | None = None
    """Measure only one kind, in this process, on the images in --work."""
    work: Path | None = None
    """Folder of the images and the cache. Default: a temporary one."""


@dataclass(frozen=True)
class Measured:
    """What one process measured."""

    first_step: float
    """Seconds until the first step is done."""
    total: float
    epoch: float
    """Images per second of the epoch alone."""
    images: int
    """Training images."""


class WatchedStep(Step):
    """Remembers when the first one was done."""

    first = 0.0

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        """See `Step`."""
        found = super().__call__(batch)
        self.first = self.first or time.perf_counter()
        return found


class Watched(Trainer):
    """A trainer by such steps."""

    step_kind = WatchedStep


def generate(folder: Path, config: Config) -> None:
    """Write JPEGs that are smooth with some noise, which makes them about as large as photos."""
    rng = np.random.default_rng(0)
    for i in tqdm(range(config.images), desc="generating", unit=" images", leave=False, disable=None):
        path = folder / f"class{i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((config.size, config.size), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def read(config: Config, work: Path, preprocess: Preprocess, workers: Workers) -> Data:
    """The data set of one kind."""
    splits = replace(Folder().splits(work / "images", "90-5-5"), test=[])
    if config.kind == "memory":
        return in_memory(splits, preprocess)
    streaming = StreamOptions(cache=work / "cache", workers=config.workers)
    return read_dataset(splits, preprocess, TuneConfig("folder", streaming=streaming), work, workers)


def in_memory(splits: Splits, preprocess: Preprocess) -> Dataset:
    """Decode all images first, however many there are, and look for duplicates as a streamed set does."""
    reader = Reader(preprocess)
    train, validation = (reader.images(splits.sets()[name], name, []) for name in ("train", "validation"))
    return Dataset(train, validation, reader.remarks())


def measure(config: Config, work: Path) -> Measured:
    """Tune one epoch."""
    model = load_backbone(config.backbone, Weights("random"), classes=CLASSES, img_size=config.size)
    recipe = Recipe(config.backbone, batch_size=config.batch_size, passes=config.passes, epochs=1)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    attach(model, adapter_config(recipe))
    with Workers(config.workers) as workers:
        start = time.perf_counter()
        data = read(config, work, preprocess, workers)
        trainer = Watched(model, data.train, data.validation, preprocess, recipe, 0)
        row = trainer.run_epoch(0)
        data.settled()
        total = time.perf_counter() - start
    assert isinstance(trainer.step, WatchedStep)
    return Measured(trainer.step.first - start, total, row["images_per_second"], len(data.train))


def anonymous(process: psutil.Process) -> int:
    """RssAnon of a process and all below it, in bytes."""
    found = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
        except OSError:  # It has ended.
            continue
        found += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return found


def run(config: Config, work: Path, kind: str) -> tuple[Measured, int]:
    """Measure one kind in a process of its own; also its peak of memory."""
    given = replace(config, kind=kind, work=work)
    options = ("images", "size", "workers", "backbone", "passes", "batch_size", "kind", "work")
    arguments = [text for name in options for text in (f"--{name.replace('_', '-')}", str(getattr(given, name)))]
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.input", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, anonymous(watched))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(process.returncode)
    return Measured(**json.loads(lines[-1])), peak


def report(found: dict[str, tuple[Measured, int]]) -> str:
    """Markdown table, each kind beside the one in memory."""
    base = found["memory"][0]
    rows = [
        (
            KINDS[kind],
            f"{peak / 1e9:.2f}",
            f"{each.first_step:.1f}",
            f"{each.epoch:.1f}",
            f"{each.epoch / base.epoch:.3f}",
            f"{each.images / each.total:.1f}",
            f"{base.total / each.total:.3f}",
        )
        for kind, (each, peak) in found.items()
    ]
    head = ("images", "RssAnon, GB", "first step, s", "epoch, images/s", "ratio", "with reading, images/s", "ratio")
    return table(head, rows)


def main() -> None:
    """Generate the images, measure each kind, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.input", config=(tyro.conf.FlagCreatePairsOff,))
    if config.quick:
        config = replace(config, images=200)
    if config.kind is not None and config.work is not None:
        print(json.dumps(asdict(measure(config, config.work))))
        return
    with tempfile.TemporaryDirectory(prefix="input-") as folder:
        work = config.work or Path(folder)
        generate(work / "images", config)
        text = report({kind: run(config, work, kind) for kind in KINDS})
    print(text)
    setting = (
        f"{config.images:,} JPEGs of {config.size} x {config.size}, {config.workers} workers; {config.backbone} with"
        f" MoSA, batch {config.batch_size}, passes {config.passes}; an epoch of nine tenths of them"
    )
    if not config.quick:
        write_text(config.out, f"# Streaming images\n\n{provenance('benchmarks.input')}\n\n{setting}\n\n{text}\n")


if __name__ == "__main__":
    main()
