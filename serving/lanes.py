"""Lanes: the ways to serve a task.

    shared              one graph for every task of a backbone, each image with the slot of its task: -> features (n, C)
    folded, unfolded    a graph of the task's own: -> logits (n, K)

A lane runs one candidate, see `serving.candidates`; `serving.opening` opens them.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.client.schema import LaneName
from mosa_deploy.graphs.adapter_weights import AdapterWeights
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import ON_GPU, Arithmetic, RunnerName
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.shared import SharedRunner
from serving.batch_sizes import sizes_up_to
from serving.candidates import Candidate
from serving.items import Item, Streams


@dataclass(frozen=True)
class ExecutionPlan:
    """How a lane's graph is run."""

    runtime: RunnerName
    precision: Arithmetic
    sizes: tuple[int, ...]
    """The batch sizes that it takes, ascending."""
    streams: Streams | None = None
    """See `Lane`."""

    @classmethod
    def of(cls, candidate: Candidate, runner: Runner, max_batch: int) -> Self:
        """The plan for batches of at most `max_batch`.

        An engine takes the sizes that it was built for, up to the first that holds `max_batch`.
        """
        if runner.sizes is None:
            return cls(candidate.runner, candidate.precision, sizes_up_to(max_batch))
        smaller = tuple(size for size in runner.sizes if size < max_batch)
        return cls(candidate.runner, candidate.precision, runner.sizes[: len(smaller) + 1])

    @property
    def padding(self) -> float:
        """See `Lane`. On a GPU a fuller batch takes little longer; on a CPU padding takes as long as images do."""
        return 0.25 if self.runtime in ON_GPU else 0.0

    def __str__(self) -> str:
        return f"{self.runtime} in {self.precision}"


class SharedLane:
    """A backbone's shared graph with its bank. One slot stays empty, for tasks that put nothing into the bank."""

    kind: LaneName = "shared"

    def __init__(self, runner: Runner, plan: ExecutionPlan, bank: Bank) -> None:
        self.graph, self.plan, self.bank = SharedRunner(runner, bank), plan, bank
        self.streamed: SharedRunner | None = None
        self.empty = bank.write({})
        self.tasks = 0
        """How many tasks are in it."""
        self._slots: dict[str, int] = {}
        self._users: Counter[int] = Counter()
        self.proved = False
        """Whether any task has passed its proofs here."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Lane`."""
        return self.plan.sizes

    @property
    def padding(self) -> float:
        """See `Lane`."""
        return self.plan.padding

    @property
    def streams(self) -> Streams | None:
        """See `Lane`."""
        return self.plan.streams

    def write(self, weights: AdapterWeights, digest: str) -> int:
        """Put a task into a slot and return the slot; tasks with the same weights share one.

        `digest` is that of the weights. Tasks without any share the empty slot.
        """
        slot = self._slots.get(digest) if weights else self.empty
        if slot is None:
            slot = self._slots[digest] = self.bank.write(weights)
        self._users[slot] += 1
        self.tasks += 1
        return slot

    def pass_of(self, slot: int) -> int:
        """A key of the pass that answers for a task in this slot: all probes share one."""
        return slot if self.bank.layout.by_slot else self.empty

    def clear(self, slot: int) -> None:
        """Take a task out of its slot, and free the slot after the last one, unless it is the empty one."""
        self.tasks -= 1
        self._users[slot] -= 1
        if slot != self.empty and not self._users[slot]:
            self._slots = {digest: taken for digest, taken in self._slots.items() if taken != slot}
            self.bank.clear(slot)

    def use_streams(self, runner: Runner | None, streams: Streams | None) -> None:
        """Run batches in streams by another runner of the same graph, or in none."""
        self.streamed = None if runner is None else SharedRunner(runner, self.bank)
        self.plan = replace(self.plan, streams=streams)

    def device_lost(self) -> bool:
        """See `Runner`."""
        return self.graph.runner.device_lost()

    def release(self) -> None:
        """See `Runner`."""
        for graph in filter(None, (self.graph, self.streamed)):
            graph.runner.release()

    def run(self, items: Sequence[Item], size: int, stream: bool = False) -> Array:
        """Run n items as a batch of `size` -> features (n, C), or all those of probes."""
        slots = np.full(size, self.empty, dtype=np.int64)
        slots[: len(items)] = [item.slot for item in items]
        return self.infer(inputs(items, size), slots, stream)[: len(items)]

    def infer(self, images: Array, slots: NDArray[np.int64], stream: bool = False) -> Array:
        """Images (B, 3, H, W) and the slot of each (B,) -> features (B, C), or all those of probes."""
        return (self.streamed if self.streamed and stream else self.graph).run(images, slots)


class OwnGraphLane:
    """A graph of one task alone, folded into its backbone or with its adapters as nodes of their own."""

    def __init__(self, kind: LaneName, graph: Runner, plan: ExecutionPlan) -> None:
        self.kind, self.graph, self.plan = kind, graph, plan
        self.streamed: Runner | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Lane`."""
        return self.plan.sizes

    @property
    def padding(self) -> float:
        """See `Lane`."""
        return self.plan.padding

    @property
    def streams(self) -> Streams | None:
        """See `Lane`."""
        return self.plan.streams

    def use_streams(self, runner: Runner | None, streams: Streams | None) -> None:
        """See `SharedLane`."""
        self.streamed, self.plan = runner, replace(self.plan, streams=streams)

    def device_lost(self) -> bool:
        """See `Runner`."""
        return self.graph.device_lost()

    def release(self) -> None:
        """See `Runner`."""
        for graph in filter(None, (self.graph, self.streamed)):
            graph.release()

    def run(self, items: Sequence[Item], size: int, stream: bool = False) -> Array:
        """Run n items as a batch of `size` -> logits (n, K)."""
        return self.infer(inputs(items, size), None, stream)[: len(items)]

    def infer(self, images: Array, _: NDArray[np.int64] | None = None, stream: bool = False) -> Array:
        """Images (B, 3, H, W) -> logits (B, K)."""
        return (self.streamed if self.streamed and stream else self.graph).run(images)


AnyLane = SharedLane | OwnGraphLane


def inputs(items: Sequence[Item], size: int) -> Array:
    """The backbone's input for a batch (size, 3, H, W), padded with zeros."""
    height, width = items[0].pixels.shape[:2]
    images = np.zeros((size, 3, height, width), dtype=np.float32)
    by_preprocess: dict[Preprocess, list[int]] = {}
    for i, item in enumerate(items):
        by_preprocess.setdefault(item.preprocess, []).append(i)
    for preprocess, places in by_preprocess.items():
        images[places] = preprocess.normalise(np.stack([items[i].pixels for i in places]))
    items[0].ready = time.monotonic()
    return images
