"""Measure how well scores tell images of unknown classes: `python -m benchmarks.unknown --data-dir ucmerced.tar ...`.

The features are those of a frozen backbone. Some classes are held out: a task knows the others alone, and a score
should be higher on images of the classes that are held out, and on images of other data sets, than on test images of
the task. AUROC is the chance that it is. Half of the classes take turns in being held out to choose a score, and the
other half to report it. Then the time of the chosen score is compared with the backbone's graph.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import timm.data
import torch
import tyro
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.unknown_scores import CHOSEN, SCORES, Known, Score, statistics_of
from export.trace import STAND_IN_CLASSES, trace_plain
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.feature_statistics import FeatureStatistics
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import command
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.utils.files import replacing, write_csv, write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from serving.drift import TOGETHER
from training.loop import predict
from training.reading import Reader
from training.tasks import find
from training.tasks.base import Example

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

HELD_OUT = 5
"""About how many classes are held out at a time."""

STRANGERS = 500
"""The most images of another data set."""


@dataclass(frozen=True)
class Config:
    """Measure scores of unknown images on a data set whose classes are held out in turn."""

    data_dir: Path
    """Images in one folder per class, or an archive of them."""
    others: tuple[Path, ...] = ()
    """Other data sets, of the same form, all of whose images are unknown."""
    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    backbone_weights: Path | None = None
    image_size: int = 98
    cache: Path = Path("build/unknown")
    """Where the features are kept."""
    out: Path = Path("benchmarks/results/unknown")


@dataclass(frozen=True)
class Features:
    """The features (N, F) and the labels (N,) of a data set."""

    values: Array
    labels: Labels
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The AUROC of one score against one kind of unknown images, by the classes that are held out."""

    score: str
    part: str
    """`choose` or `report`."""
    held_out: str
    unknown: str
    auroc: float


def features_of(config: Config, data_dir: Path, most: int | None = None) -> Features:
    """The features of a data set, or of `most` of its images; computed once."""
    key = f"{data_dir.name} {config.backbone} {config.image_size} {most}"
    path = config.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            return Features(kept["values"], kept["labels"], tuple(kept["classes"].tolist()))
    splits = find("folder").splits(data_dir, None)
    examples: Sequence[Example] = sorted((*splits.train, *splits.validation, *splits.test), key=lambda each: each.name)
    order = np.random.default_rng(0).permutation(len(examples))[:most]
    weights = Weights.choose(config.backbone_weights, random=False)
    model = load_backbone(config.backbone, weights, img_size=config.image_size)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    images = Reader(preprocess).images([examples[i] for i in order], data_dir.name)
    found = Features(predict(model, images, preprocess, "cpu").numpy(), images.labels.numpy(), splits.classes)
    with replacing(path) as aside, aside.open("wb") as handle:
        np.savez(handle, values=found.values, labels=found.labels, classes=np.array(found.classes))
    return found


def draws(classes: int) -> Iterator[tuple[str, list[int]]]:
    """The classes that are held out at a time, and what for: one half of all to choose a score, the other to report."""
    order = np.random.default_rng(0).permutation(classes)
    for part, half in (("choose", order[: classes // 2]), ("report", order[classes // 2 :])):
        for group in np.array_split(half, max(1, round(len(half) / HELD_OUT))):
            yield part, sorted(group.tolist())


def known_images(data: Features, held_out: Sequence[int]) -> tuple[Known, Array]:
    """What a task knows that was tuned without some classes, and its test images: 60 %, 20 % and 20 % of each class."""
    rng, parts = np.random.default_rng(0), list[list[NDArray[np.int64]]]()
    for k in range(len(data.classes)):
        rows = rng.permutation(np.flatnonzero(data.labels == k))
        if k not in held_out:
            parts.append(np.split(rows, [int(0.6 * len(rows)), int(0.8 * len(rows))]))
    train, validation, test = (np.concatenate(each) for each in zip(*parts, strict=True))
    known = Known(data.values[train], data.labels[train], data.values[validation], data.labels[validation])
    return known, data.values[test]


def rows_of(data: Features, strangers: dict[str, Array]) -> Iterator[Row]:
    """The AUROC of every score, for each draw of classes and against each kind of unknown images."""
    for part, held_out in draws(len(data.classes)):
        known, test = known_images(data, held_out)
        names = ", ".join(data.classes[k] for k in held_out)
        unknown = {"held-out classes": data.values[np.isin(data.labels, held_out)], **strangers}
        for name, fit in SCORES.items():
            score = fit(known)
            for kind, images in unknown.items():
                yield Row(name, part, names, kind, auroc(score, test, images))
        print(f"{part}: without {names}", flush=True)


def auroc(score: Score, known: Array, unknown: Array) -> float:
    """The chance that an unknown image has a higher score than a known one."""
    found = np.concatenate([score(known), score(unknown)])
    return float(roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), found))


def result_table(rows: Sequence[Row]) -> str:
    """The mean AUROC of each score, in the part that chooses and in the part that is reported."""
    kinds = list(dict.fromkeys(row.unknown for row in rows))
    columns = [("choose", kinds[0]), *(("report", kind) for kind in kinds)]

    def mean(name: str, part: str, kind: str) -> str:
        return f"{np.mean([row.auroc for row in rows if (row.score, row.part, row.unknown) == (name, part, kind)]):.4f}"

    heads = ("score", "held-out classes, to choose", *kinds)
    return table(heads, [(name, *(mean(name, *column) for column in columns)) for name in SCORES])


def seconds(action: Callable[[], object], budget: float = 2.0) -> float:
    """The median time of an action."""
    times, end = list[float](), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def cost(config: Config, statistics: FeatureStatistics, features: Array, answers: Array) -> str:
    """What the score of an image takes beside the backbone's graph, on one core."""
    model = load_backbone(config.backbone, Weights("random"), STAND_IN_CLASSES, config.image_size)
    randomise(model)
    images = np.zeros((1, 3, config.image_size, config.image_size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plain.onnx"
        onnx.save(trace_plain(model, sha256="").model, path)
        runner = OnnxRunner(path, threads=1, spinning=False)
        graph = seconds(lambda: runner.run(images), 10)
    alone = seconds(lambda: statistics.unknown(features[:1], answers[:1]))
    each = seconds(lambda: statistics.unknown(features[:TOGETHER], answers[:TOGETHER])) / TOGETHER
    size = sum(tensor.nbytes for tensor in statistics.to_tensors().values())
    return (
        f"An image takes {1e3 * graph:.1f} ms in the plain fp32 graph with one thread. Its score takes"
        f" {1e6 * alone:.0f} us if it is asked for, {100 * alone / graph:.2f} % of that. For drift {TOGETHER} images"
        f" are scored together, in {1e6 * each:.1f} us each, {100 * each / graph:.3f} %. The statistics of"
        f" {len(statistics.means)} classes take {size / 1e3:.0f} kB in the bundle."
    )


@command
def main() -> None:
    """Measure, print and write the tables."""
    torch.set_num_threads(1)
    config = tyro.cli(Config, prog="python -m benchmarks.unknown")
    data = features_of(config, config.data_dir)
    strangers = {path.name.partition(".")[0]: features_of(config, path, STRANGERS).values for path in config.others}
    rows = list(rows_of(data, strangers))
    write_csv(config.out / "auroc.csv", tuple(vars(rows[0])), [tuple(vars(row).values()) for row in rows])
    known, test = known_images(data, [])
    statistics, answer = statistics_of(known)
    took = cost(config, statistics, test, np.asarray(answer(test), dtype=np.float32))
    chosen = f"The service's score is `{CHOSEN}`. AUROC, means over the classes that are held out in turn:"
    parts = ["# Unknown images", provenance("benchmarks.unknown"), chosen, result_table(rows), took]
    text = "\n\n".join(parts)
    write_text(config.out / "unknown.md", f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
