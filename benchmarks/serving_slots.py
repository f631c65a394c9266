"""The part of `benchmarks.serving` that sends a million items through registry, slots and batcher, with a fake runner.

Everything except the graph is the service's own, and batches run in streams. Each version of a task writes a number
into its slot, and each image carries a number. The fake runner answers with their sum as the top class. So a wrong
answer shows that a slot was written too early, or was read by an item of another version.
"""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_speed import Figures
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle, expected_shapes
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Array, Pixels, probabilities
from mosa_deploy.runtimes.names import Arithmetic
from serving.backend import Answered, Lease, PutOptions
from serving.errors import RequestError
from serving.local_backend import LocalBackend
from serving.settings import Settings
from tests.support.tasks import CLASSES, TaskMaker, packed

SHARPNESS = 8.0
NUMBER = "blocks.0.adapter.up.bias"
"""The tensor that holds a version's number."""


STREAMS = 4
RUN_SECONDS = 1e-4
"""How long a batch takes at least, so that several run at once."""


class CheapRunner:
    """A runner without a graph. Its features encode the sum of the slot's number and the image's number."""

    precision: Arithmetic = "fp32"
    sizes = None
    lock = threading.Lock()
    running: ClassVar = 0
    most: ClassVar = 0
    """The most batches that ran at once."""

    def __init__(self, *_: object, **__: object) -> None:
        """Accept the arguments of `open_runner`, and ignore them."""
        self.bank: Mapping[str, Array] = {}

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """See `Runner`."""
        self.bank = tensors

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """See `Runner`. Nothing to do: `run` reads the tensors in place."""

    def device_lost(self) -> bool:
        """See `Runner`."""
        return False

    def release(self) -> None:
        """See `Runner`. It takes no memory."""

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Images (B, 3, H, W), slots (B,) -> features (B, C)."""
        images, slots = inputs
        with self.lock:
            CheapRunner.running += 1
            CheapRunner.most = max(CheapRunner.most, CheapRunner.running)
        time.sleep(RUN_SECONDS)
        of_slots = self.bank["blocks.0.up_bias"][slots]
        codes = np.rint(of_slots[:, 0]).astype(int) + np.rint(images[:, 0, 0, 0]).astype(int)
        features: Array = np.zeros_like(of_slots)
        features[np.arange(len(slots)), codes % CLASSES] = SHARPNESS
        with self.lock:
            CheapRunner.running -= 1
        return features


def version(maker: TaskMaker, name: str, number: int) -> Archive:
    """A version of a task with a number."""
    made = maker.make(name, number, bottleneck=1).bundle()
    adapter = made.record.adapter
    assert adapter is not None
    tensors = {n: np.zeros(shape, dtype=np.float32) for n, shape in expected_shapes(made.record).items()}
    tensors[NUMBER][:] = number / adapter.scale
    tensors["head.weight"][np.arange(CLASSES), np.arange(CLASSES)] = 1
    # One value in all of an image: the number 0 after the normalisation.
    preprocess = made.record.preprocess.model_copy(update={"mean": (0.0,) * 3, "std": (1 / 255,) * 3})
    record = made.record.model_copy(update={"preprocess": preprocess})
    logits = np.zeros((1, CLASSES), dtype=np.float32)
    logits[0, number % CLASSES] = SHARPNESS
    canary = Canary((encode(image(maker, 0)),), probabilities(logits, record.temperature))
    return packed(Bundle(record, dict(tensors), canary))


def image(maker: TaskMaker, number: int) -> Pixels:
    """An image with a number."""
    return np.full((*maker.preprocess.size, 3), number, dtype=np.uint8)


def slots(folder: Path, items: int, tasks: int, active: int) -> Figures:
    """Query random tasks, of which only some fit into the slots, while versions are replaced; check each answer."""
    maker = TaskMaker(folder / "store")
    versions = {f"task-{t}": [version(maker, f"task-{t}", t + 7 * v) for v in range(3)] for t in range(tasks)}
    numbers = {v.bundle().digest: t + 7 * k for t, found in enumerate(versions.values()) for k, v in enumerate(found)}
    for found in versions.values():
        maker.store(found[0])
    settings = Settings(artifacts=str(maker.root), active=active, max_wait_ms=0.1, queue=100_000, threads=STREAMS)
    # No measurement decides whether there are streams.
    with patch("serving.opening.open_runner", CheapRunner), patch("serving.warming.GAIN", math.inf):
        backend = LocalBackend(settings)
        try:
            return asyncio.run(asked(backend, versions, numbers, [image(maker, c) for c in range(16)], items))
        finally:
            backend.stop()


async def asked(
    backend: LocalBackend,
    versions: Mapping[str, list[Archive]],
    numbers: Mapping[str, int],
    images: list[Pixels],
    items: int,
    askers: int = 6,
    at_once: int = 64,
) -> Figures:
    """Threads that query tasks, and one that replaces versions."""
    names, counts, start = list(versions), Counter[str](), time.monotonic()

    async def asker(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while counts["items"] < items:
            few = [names[i] for i in rng.choice(len(names), 4, replace=False)]
            leases = await backend.lease(few, 30)
            held = [lease for lease in leases.values() if isinstance(lease, Lease)]
            counts["busy"] += len(few) - len(held)
            if held:
                codes, which = rng.integers(len(images), size=at_once), rng.integers(len(held), size=at_once)
                pairs = [(held[w], images[c]) for w, c in zip(which, codes, strict=True)]
                for (lease, _), code, outcome in zip(pairs, codes, await backend.infer(pairs, 30), strict=True):
                    expected = (numbers[lease.digest] + int(code)) % CLASSES
                    counts[verdict(outcome, expected)] += 1
                counts["items"] += at_once
                await backend.release(held)

    async def replacer() -> None:
        rng = np.random.default_rng(99)
        while counts["items"] < items:
            name = names[int(rng.integers(len(names)))]
            try:
                await backend.put(name, versions[name][int(rng.integers(3))].pack(), PutOptions())
                counts["replaced"] += 1
            except RequestError as error:
                if error.status != 503:
                    raise
                counts["busy"] += 1

    await asyncio.gather(replacer(), *(asker(seed) for seed in range(askers)))
    shown = {name: counts[name] for name in ("items", "right", "wrong answers", "failed", "replaced", "busy")}
    more = {"batches at once": CheapRunner.most, "tasks": len(names), "seconds": time.monotonic() - start}
    return shown | more


def verdict(outcome: Answered | RequestError, expected: int) -> str:
    """The category of an outcome, under which it is counted."""
    if isinstance(outcome, RequestError):
        return "failed"
    return "right" if int(outcome.probabilities.argmax()) == expected else "wrong answers"
