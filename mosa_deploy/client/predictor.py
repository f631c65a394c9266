"""Answer images by one task in this process, without a server.

    predictor = Predictor.open("artifacts/tasks/digits")
    predictor.classify("image.png").label

Needs numpy, Pillow and ONNX Runtime alone.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Self

import numpy as np

from mosa_deploy.bundles.answers import no_threshold, ranked, threshold_fault
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.feature_statistics import unit_length
from mosa_deploy.bundles.graph_index import graph_file, read_index
from mosa_deploy.bundles.preprocess import Array, Pixels
from mosa_deploy.bundles.store_layout import TASKS, StoreLayout
from mosa_deploy.bundles.task_graph import check_proved, own_graph
from mosa_deploy.client.schema import Answer, Prediction
from mosa_deploy.errors import ConfigError, DataError, ParityError, StoreError
from mosa_deploy.graphs.adapter_weights import choose_layout
from mosa_deploy.runtimes.names import CANARY_TOLERANCE, DEFAULT_RUNNER, Arithmetic, RunnerName
from mosa_deploy.runtimes.runner import Runner, open_runner
from mosa_deploy.runtimes.shared import SharedTask, apply_head
from mosa_deploy.utils.files import Content, FilePath, read_content

Function = Callable[[Array], Array]
"""Turns what the backbone reads (B, 3, H, W) into logits (B, K) or features (B, F)."""

OpenShared = Callable[[], tuple[SharedTask, Runner]]
"""Opens the backbone's shared graph, with the task in its bank."""

BATCH = 16
"""Images that run through the graph together."""


class Predictor:
    """Classifies images by a task's exported graph, with the probabilities that the service would give."""

    def __init__(self, bundle: Bundle, logits: Function, open_shared: OpenShared) -> None:
        self.bundle, self._logits, self._open_shared = bundle, logits, open_shared
        self._features: dict[bool, Function] = {}

    @classmethod
    def open(cls, folder: FilePath, runner: RunnerName = DEFAULT_RUNNER, threads: int = 0) -> Self:
        """Load a task's folder in a store, e.g. `artifacts/tasks/digits`, and prove it on its canary.

        A task without a graph of its own runs through its backbone's shared graph, which lies in the same store.

        `threads` of 0 takes one for each core.

        Raises:
            BundleError: the folder holds no bundle, or a damaged one.
            StoreError: there is no graph, as in a run's folder, or it was altered, or the backbone is missing.
            ProviderError: the runner's runtime is not installed here.
            ParityError: the canary's probabilities come out otherwise than they were recorded.
        """
        bundle = Bundle.load(Path(folder))
        open_shared = cache(partial(_open_shared, Path(folder), bundle, runner, threads))
        logits, precision = _open(Path(folder), bundle, runner, threads, open_shared)
        predictor = cls(bundle, logits, open_shared)
        error = bundle.canary.error(predictor.probabilities(bundle.canary.images))
        if not error <= CANARY_TOLERANCE[precision]:
            raise ParityError(
                f"{folder}: the graph misses its canary's probabilities by {error:.1e}, above"
                f" {CANARY_TOLERANCE[precision]:.0e}: export the task again"
            )
        return predictor

    @property
    def task(self) -> str:
        """The task's name."""
        return self.bundle.record.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.bundle.record.classes

    def classify(self, image: Content, top_k: int | None = None, threshold: float | None = None) -> Answer:
        """The classes of an image, given as encoded bytes or as the path of its file.

        They are the `top_k` likeliest, 5 if None. A task with several labels per image answers all labels that reach
        their own thresholds, or `threshold` in their place; of these at most `top_k`.

        Raises:
            DataError: the image cannot be read.
            ConfigError: the threshold is not between 0 and 1, or the task takes none.
        """
        (answer,) = self.classify_many([image], top_k, threshold=threshold)
        return answer

    def classify_many(
        self, images: Iterable[Content], top_k: int | None = None, batch: int = BATCH, threshold: float | None = None
    ) -> Iterator[Answer]:
        """Classify images in batches; answers come in the order of the images.

        Raises:
            DataError: an image cannot be read.
            ConfigError: as `classify`.
        """
        remaining = iter(images)
        while part := list(itertools.islice(remaining, batch)):
            yield from self.answer([self.pixels(image) for image in part], top_k, threshold)

    def answer(
        self, images: Sequence[Pixels], top_k: int | None = None, threshold: float | None = None
    ) -> list[Answer]:
        """Classify decoded images (H, W, 3) as one batch; `milliseconds` is the time of an image in it.

        Raises:
            ConfigError: as `classify`.
        """
        self.check_threshold(threshold)
        start = time.perf_counter()
        found = self._probabilities(images)
        milliseconds = 1000 * (time.perf_counter() - start) / len(images)
        return [self._answer(row, top_k, threshold, milliseconds) for row in found]

    def check_threshold(self, threshold: float | None) -> None:
        """Raises ConfigError if a threshold is not between 0 and 1, or the task takes none."""
        if fault := threshold_fault(threshold):
            raise ConfigError(f"threshold {fault}")
        if threshold is not None and not self.bundle.record.multi_label:
            raise ConfigError(no_threshold(self.task))

    def probabilities(self, images: Sequence[Content]) -> Array:
        """Calibrated probabilities (B, K) of images, given as encoded bytes or paths.

        Raises:
            DataError: an image cannot be read.
        """
        return self._probabilities([self.pixels(image) for image in images])

    def embed(self, image: Content, normalise: bool = False, plain: bool = False) -> Array:
        """The features (F,) of an image: those that the task's head reads, or with `plain` the backbone's own.

        They are divided by their Euclidean norm with `normalise`. A folded graph gives none, so the backbone's shared
        graph is opened, which must lie in the same store.

        Raises:
            DataError: the image cannot be read.
            StoreError: the backbone is missing, or was altered.
            BundleError: no shared graph can serve the task.
        """
        (features,) = self.embed_many([image], normalise, plain)
        return features

    def embed_many(
        self, images: Iterable[Content], normalise: bool = False, plain: bool = False, batch: int = BATCH
    ) -> Iterator[Array]:
        """The features of images, computed in batches; they come in the order of the images.

        Raises:
            MosaError: as `embed`.
        """
        remaining = iter(images)
        while part := list(itertools.islice(remaining, batch)):
            found = self._features_of([self.pixels(image) for image in part], plain)
            yield from unit_length(found) if normalise else found

    def unknown(self, image: Content) -> float | None:
        """How unknown an image is to the task, from 0 to 1; None if the bundle has no statistics of its features.

        It is the share of validation images that are less unknown.

        Raises:
            MosaError: as `embed`.
        """
        if self.bundle.statistics is None:
            return None
        features = self.embed(image)[None]
        answers = self.bundle.record.scores(apply_head(features, self.bundle.head))
        return float(self.bundle.statistics.unknown(features, answers)[0])

    def pixels(self, image: Content) -> Pixels:
        """An image as the task reads it, (H, W, 3).

        Raises:
            DataError: the image cannot be read.
        """
        try:
            return self.bundle.record.preprocess.read(read_content(image))
        except DataError as error:
            if not isinstance(image, str | os.PathLike) or str(error).startswith(os.fspath(image)):
                raise
            raise DataError(f"{os.fspath(image)}: {error}") from None

    def _probabilities(self, images: Sequence[Pixels]) -> Array:
        record = self.bundle.record
        return record.scores(self._logits(record.preprocess.normalise(np.stack(images))))

    def _features_of(self, images: Sequence[Pixels], plain: bool) -> Array:
        if plain not in self._features:
            task, runner = self._open_shared()
            self._features[plain] = (task.plain() if plain else task).features_by(runner)
        return self._features[plain](self.bundle.record.preprocess.normalise(np.stack(images)))

    def _answer(self, row: Array, top_k: int | None, threshold: float | None, milliseconds: float) -> Answer:
        likeliest = ranked(row, self.bundle.record.thresholds, top_k, threshold)
        predictions = tuple(Prediction(label=self.classes[k], score=float(row[k])) for k in likeliest)
        return Answer(task=self.task, predictions=predictions, bundle=self.bundle.digest, milliseconds=milliseconds)


def _open(
    folder: Path, bundle: Bundle, runner: RunnerName, threads: int, open_shared: OpenShared
) -> tuple[Function, Arithmetic]:
    """The task's logits, and what they are computed in: by the task's own graph, or the shared one.

    Raises:
        StoreError: there is neither, or it was altered.
        ProviderError: the runner's runtime is not installed here.
    """
    own = own_graph(folder)
    if own:
        check_proved(own, bundle.digest)
        opened = open_runner(own, runner, threads)
        return opened.run, opened.precision
    task, opened = open_shared()
    return task.answer_by(opened), opened.precision


def _open_shared(folder: Path, bundle: Bundle, runner: RunnerName, threads: int) -> tuple[SharedTask, Runner]:
    """The task in a bank of its own, and the shared graph of its backbone, which lies in the same store.

    Raises:
        StoreError: it is missing, or was altered.
        ProviderError: the runner's runtime is not installed here.
    """
    if folder.absolute().parent.name != TASKS:
        if own_graph(folder):
            raise StoreError(
                f"{folder} is in no store, where its backbone's shared graph would be, which gives features: open it in"
                " the folder that `mosa export` wrote"
            )
        raise StoreError(
            f"{folder} holds no graph, as a run's folder does not: write one with `mosa export --bundle {folder}"
            f" --out artifacts`, and open artifacts/{TASKS}/{bundle.record.task}"
        )
    backbone = StoreLayout(folder.absolute().parents[1]).backbone(bundle.record.backbone)
    if not backbone.is_dir():
        raise StoreError(
            f"{folder} needs its backbone, but {backbone} is missing: copy it there, or export the task again"
        )
    index = read_index(backbone)
    layout = choose_layout(bundle.record, index.files)
    opened = open_runner(graph_file(backbone, index, layout.file), runner, threads)
    return SharedTask.alone(bundle, layout, index.bank_scales(layout.file)), opened
