"""Compare scaled with full decoding of JPEGs: `python -m benchmarks.decode`, or with `--quick` in half a minute.

Three tables: how long a photo takes until it has the input's size, and how far its pixels are apart; how many photos
per second one core answers with the embedded backbone, from the file's bytes to the class; and with `--data FOLDER`
what it does to accuracy. The two ways take turns in random order, and their times are compared round by round.

The photos of 12 megapixels are tiled from two real ones. In real sets accuracy can only differ where images are at
least four times as large as the input.
"""

import io
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm.data
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.decode import Decode, JpegDecoding
from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.predictor import Predictor
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.intervals import mean_interval, median_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from tests.support.tasks import TaskMaker
from training.tasks.folder import Folder

WAYS: tuple[JpegDecoding, ...] = ("full", "scaled")

TWELVE = (4000, 3000)
"""Width and height of a photo of 12 megapixels."""

BATCH, FOLDS, QUICK = 128, 5, 200

AIM = 3.0
"""How many times as many photos of 12 megapixels scaled decoding is to answer per second, embedded backbone."""


@dataclass(frozen=True)
class Config:
    """Measure what scaled decoding of JPEGs gains, and what it costs."""

    rounds: int = 20
    sizes: tuple[int, ...] = (32, 98, 224)
    """Sides of the input."""
    data: Path | None = None
    """A folder or archive with one folder per class, on which accuracy is measured."""
    quick: bool = False
    """Only see whether it works: two rounds and 200 images, and nothing is written."""
    out: Path = Path("benchmarks/results/decode.md")


def photos() -> dict[str, bytes]:
    """Name -> encoded photo."""
    real = load_sample_images().images
    row = np.concatenate(real, axis=1)
    width, height = TWELVE
    tiled = np.tile(row, (-(-height // row.shape[0]), -(-width // row.shape[1]), 1))[:height, :width]
    return {
        "12 megapixels": encoded(tiled),
        "12 megapixels, progressive": encoded(tiled, progressive=True),
        "0.27 megapixels": encoded(real[0]),
    }


def encoded(pixels: NDArray[np.uint8], progressive: bool = False) -> bytes:
    """A JPEG of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90, progressive=progressive)
    return buffer.getvalue()


def take_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Name -> seconds of each round, after one that does not count."""
    rng, taken = np.random.default_rng(0), {name: list[float]() for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name in rng.permutation([*works]):
            start = time.perf_counter()
            works[name]()
            taken[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    """How many times as fast, with its 95 % interval."""
    return f"{median_interval(before / after):.2f}"


def decoding(config: Config) -> str:
    """Milliseconds until a photo has the input's size, and how far the two ways are apart in grey levels."""
    rows = []
    for name, content in photos().items():
        for side in config.sizes:
            reads = {way: Preprocess(size=(side, side), decode=Decode(jpeg=way)) for way in WAYS}
            works: dict[str, Callable[[], object]] = {way: partial(reads[way].read, content) for way in WAYS}
            taken = take_turns(works, config.rounds)
            apart = np.abs(reads["full"].read(content).astype(int) - reads["scaled"].read(content))
            milliseconds = [f"{1000 * np.median(taken[way]):.1f}" for way in WAYS]
            differences = f"{apart.mean():.2f}", f"{np.percentile(apart, 99):.0f}", apart.max()
            rows.append((name, side, *milliseconds, ratio(taken["full"], taken["scaled"]), *differences))
    head = ("photo", "input", "full, ms", "scaled, ms", "times as fast", "mean difference", "99 %", "largest")
    return table(head, rows, "lrrrrrrr")


def answering(config: Config) -> str:
    """Photos of 12 megapixels per second, from bytes to classes, on one core."""
    content = photos()["12 megapixels"]
    with tempfile.TemporaryDirectory(prefix="decode-") as folder:
        maker = TaskMaker(Path(folder) / "store")
        predictors = {}
        ways: dict[str, JpegDecoding] = {"full": "full", "scaled": "scaled", "full, again": "full"}
        for name, way in ways.items():
            maker.preprocess = maker.preprocess.model_copy(update={"decode": Decode(jpeg=way)})
            predictors[name] = Predictor.open(maker.store(maker.make("photos")), threads=1)
        works = {name: partial(each.classify, content) for name, each in predictors.items()}
        taken = take_turns(works, config.rounds)
    rows = [(name, f"{np.median(1 / each):.1f}", ratio(taken["full"], each)) for name, each in taken.items()]
    return table(("JPEGs", "photos/s", f"of full (aim for scaled: {AIM:g})"), rows, "lrr")


def accuracy(config: Config, data: Path) -> str:
    """Logistic regression on frozen features, cross-validated over all images: fitted by one way, tested by each."""
    splits = Folder().splits(data, None)
    every = [example for each in splits.sets().values() for example in each]
    examples = every[:: max(1, len(every) // QUICK)] if config.quick else every
    labels = np.array([example.label for example in examples])
    model = load_backbone(embedded.NAME, Weights("pretrained"), classes=0).eval()
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    reads = {way: preprocess.model_copy(update={"decode": Decode(jpeg=way)}) for way in WAYS}
    pixels = {way: np.stack([read.read(example.read()) for example in examples]) for way, read in reads.items()}
    features = {way: features_of(model, preprocess, each) for way, each in pixels.items()}
    answers = {(fitted, tested): np.empty_like(labels) for fitted in WAYS for tested in WAYS}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features["full"], labels):
        for fitted in WAYS:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=150))
            probe.fit(features[fitted][train], labels[train])
            for tested in WAYS:
                answers[fitted, tested][test] = probe.predict(features[tested][test])
    base, rows = answers["full", "full"], []
    for (fitted, tested), each in answers.items():
        found = mean_interval(100 * ((each == labels).astype(float) - (base == labels)))
        rows.append(
            (fitted, tested, f"{(each == labels).mean():.4f}", f"{found:+z.2f}", f"{100 * (each != base).mean():.1f} %")
        )
    apart = np.abs(pixels["full"].astype(int) - pixels["scaled"])
    text = (
        f"{len(labels):,} images of {data.stem}, logistic regression on the embedded backbone's features at 32 px,"
        f" {FOLDS}-fold cross-validation. Pixels differ by {apart.mean():.2f} grey levels on average."
    )
    head = ("fitted by", "tested by", "accuracy", "points more than full", "answers that change")
    return f"{text}\n\n{table(head, rows, 'llrrr')}"


def features_of(model: Transformer, preprocess: Preprocess, pixels: Pixels) -> Array:
    """The backbone's features (N, C) of images (N, H, W, 3)."""
    batches = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
    with torch.inference_mode():
        found = [model(torch.from_numpy(preprocess.normalise(batch))).numpy() for batch in batches]
    return np.concatenate(found)


def main() -> None:
    """Measure, print and write the tables."""
    config = tyro.cli(Config, prog="python -m benchmarks.decode", config=(tyro.conf.FlagCreatePairsOff,))
    if config.quick:
        config = replace(config, rounds=2)
    parts = [decoding(config), answering(config)]
    if config.data is not None:
        parts.append(accuracy(config, config.data))
    text = "\n\n".join(parts)
    print(text)
    if not config.quick:
        write_text(config.out, f"# Scaled decoding of JPEGs\n\n{provenance('benchmarks.decode')}\n\n{text}\n")


if __name__ == "__main__":
    main()
