"""A lane's graph of one task: how any file of it is asked for the task's logits, and what calibrates it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.int8 import Feed
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.runner import Runner

BATCH = 16
"""Calibration images at a time: the activations of more would fill the memory."""

Finish = Callable[[Array], Array]


def unchanged(logits: Array) -> Array:
    """A task's own graph ends in logits."""
    return logits


@dataclass(frozen=True)
class ExportTarget:
    """The fp32 graph of one lane, and how a task uses it."""

    name: str
    """`folded`, `unfolded` or `shared`."""
    path: Path
    bound: dict[str, Array] = field(default_factory=dict)
    """The banks of a shared graph, with the task in them."""
    slot: int | None = None
    """The task's, in the banks."""
    bottleneck: int = 0
    """Of the banks."""
    finish: Finish = unchanged
    """From the graph's output to logits (B, K)."""

    @property
    def shared(self) -> bool:
        """Whether its files serve all tasks of a backbone."""
        return self.slot is not None

    @property
    def stage(self) -> str:
        """Its name in the chain of `export.parity`."""
        return f"{self.name} ONNX"

    def inputs(self, images: Array) -> list[NDArray[Any]]:
        """What is not bound: images (B, 3, H, W), and the slot of each in a shared graph."""
        return [images] if self.slot is None else [images, np.full(len(images), self.slot, dtype=np.int64)]

    def logits(self, runner: Runner, images: Array) -> Array:
        """The task's logits (B, K) by a file of this lane."""
        if self.bound:
            runner.bind(self.bound)
        return self.finish(runner.run(*self.inputs(images)))

    def feed(self, images: Array) -> Feed:
        """Every input of the graph by name."""
        return dict(zip(("images", "slots"), self.inputs(images), strict=False)) | self.bound

    def feeds(self, images: Array) -> Iterator[Feed]:
        """The same, a batch at a time."""
        for i in range(0, len(images), BATCH):
            yield self.feed(images[i : i + BATCH])


def shared_target(path: Path, bundle: Bundle) -> ExportTarget:
    """The backbone's shared graph with this task alone in its banks, and the task's head behind it."""
    bank = Bank(layout_of(bundle.record))
    slot = bank.write(adapter_weights(bundle))
    head, bias = bundle.head

    def finish(features: Array) -> Array:
        return np.asarray(features @ head.T + bias, dtype=np.float32)

    return ExportTarget("shared", path, dict(bank.tensors), slot, bank.bottleneck, finish)
