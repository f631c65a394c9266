"""Export targets: the fp32 graph of each lane, which other files are made from, and how to feed these files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from export.engines import IMAGES, SLOTS
from export.intermediate import Feed
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import Exponents, scales_of
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.shared import SharedTask

BATCH = 16
"""Number of calibration images at a time: activations of many images need much memory."""


@dataclass(frozen=True)
class ExportTarget:
    """The fp32 graph of one lane."""

    name: str
    """`folded`, `unfolded` or `shared`."""
    path: Path
    task: SharedTask | None = None
    """The exported task in a bank of its own, if the graph is the shared one."""

    @property
    def shared(self) -> bool:
        """Whether its files serve all tasks of a backbone."""
        return self.task is not None

    @property
    def bottleneck(self) -> int:
        """The width of the task's adapter in the bank; 0 if there is none."""
        return 0 if self.task is None else self.task.bank.bottleneck

    @property
    def stage(self) -> str:
        """Its name in the chain of `export.parity`."""
        return f"{self.name} ONNX"

    def scaled(self, bundle: Bundle, exponents: Exponents) -> Self:
        """The same with the bundle's task in a bank for a file that needs these scales."""
        if self.task is None or not exponents:
            return self
        return replace(self, task=SharedTask.alone(bundle, self.task.bank.layout, scales_of(exponents)))

    def answer_by(self, runner: Runner) -> Callable[[Array], Array]:
        """A function from images (B, 3, H, W) to the task's logits (B, K), by a runner of one of the target's files."""
        return runner.run if self.task is None else self.task.answer_by(runner)

    def feed(self, images: Array) -> Feed:
        """Every input of the graph by name."""
        if self.task is None:
            return {IMAGES: images}
        slots = {SLOTS: self.task.slots(len(images))} if self.task.bank.layout.by_slot else {}
        return {IMAGES: images, **slots, **self.task.bank.tensors}

    def feeds(self, images: Array) -> Iterator[Feed]:
        """The inputs for a few images at a time."""
        for i in range(0, len(images), BATCH):
            yield self.feed(images[i : i + BATCH])
