"""The registry: the tasks of a store, each proved by its canary before it is served."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from mosa_deploy.bundle import Bundle, Record
from mosa_deploy.canary import TOLERANCE
from mosa_deploy.errors import MosaError, ParityError, StoreError
from mosa_deploy.preprocess import Array, decode, probabilities
from mosa_deploy.runners import OnnxRunner, Runner
from mosa_deploy.store import FOLDED, Store

log = logging.getLogger("mosa_deploy.serving")


@dataclass(frozen=True)
class ServedTask:
    """A task with the graph that answers it."""

    record: Record
    runner: Runner

    @classmethod
    def load(cls, store: Store, name: str, threads: int = 0) -> Self:
        """Load a task and prove it: the canary's bytes must become the recorded probabilities.

        Raises:
            MosaError: the bundle or the graph is missing or damaged, or the canary fails.
        """
        folder = store.task(name)
        bundle = Bundle.load(folder)
        task = cls(bundle.record, OnnxRunner(folder / FOLDED, threads=threads))
        inputs = bundle.canary.inputs(bundle.record.preprocess)
        try:
            answer = task.probabilities(inputs)
        except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
            reason = str(fault).splitlines()[0]
            raise StoreError(f"'{name}': {FOLDED} does not take its canary: {reason}; export it again") from fault
        error = bundle.canary.error(answer)
        if error > TOLERANCE["fp32"]:
            raise ParityError(f"'{name}': {FOLDED} misses its canary's probabilities by {error:.1e}: export it again")
        return task

    def probabilities(self, images: Array) -> Array:
        """(B, 3, H, W) -> calibrated probabilities (B, K)."""
        return probabilities(self.runner.run(images), self.record.temperature)

    def classify(self, content: bytes) -> list[tuple[str, float]]:
        """Every class with its probability, likeliest first.

        Raises:
            DataError: the bytes are not an image.
        """
        preprocess = self.record.preprocess
        pixels = preprocess.pixels(decode(content))
        scores = self.probabilities(preprocess.normalise(pixels[None]))[0]
        return [(self.record.classes[k], float(scores[k])) for k in (-scores).argsort(kind="stable")]


@dataclass(frozen=True)
class Registry:
    """The tasks that are served, and why others in the store are not."""

    tasks: Mapping[str, ServedTask]
    refused: Mapping[str, str]

    @classmethod
    def open(cls, store: Store, threads: int = 0) -> Self:
        """Load every task of the store; one that cannot be proved is refused by name and does not stop the others.

        Raises:
            StoreError: no task is left.
        """
        tasks: dict[str, ServedTask] = {}
        refused: dict[str, str] = {}
        for name in store.tasks():
            try:
                tasks[name] = ServedTask.load(store, name, threads)
                log.info("serving %s, bundle %s", name, tasks[name].record.sha256[:12])
            except MosaError as error:
                refused[name] = str(error)
                log.error("not serving %s: %s", name, error)
        if not tasks:
            raise StoreError(f"no task of {store.root} can be served: {'; '.join(refused.values())}")
        return cls(MappingProxyType(tasks), MappingProxyType(refused))
