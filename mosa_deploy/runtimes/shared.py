"""The shared graph: a bank of tasks is bound to it, and each task's head is applied to the features that it gives."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.graphs.adapter_weights import AdapterWeights, SharedLayout, adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank, BankScales
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.tensorrt_record import read_records

Head = tuple[Array, Array]
"""A classifier's weight (K, F) and bias (K,)."""


def apply_head(features: Array, head: Head) -> Array:
    """Features (..., F) -> logits (..., K)."""
    weight, bias = head
    return np.asarray(features @ weight.T + bias, dtype=np.float32)


def bank_scales(path: Path) -> BankScales:
    """What a bank for this file of a shared graph multiplies its rows by; an engine has the scales of its ONNX file.

    Raises:
        StoreError: the index beside it, or the record of an engine, is missing or damaged.
    """
    # A damaged record of engines stops no ONNX file.
    record = None if path.suffix == ".onnx" else read_records(path.parent).get(path.name)
    return read_index(path.parent).bank_scales(record.onnx if record else path.name)


class SharedRunner:
    """Runs a shared graph whose bank is bound once instead of being fed at each call.

    The next run sees every slot that was written or cleared before it. Several threads may run it while nothing is
    written to the bank.
    """

    def __init__(self, runner: Runner, bank: Bank) -> None:
        self.runner, self.bank = runner, bank
        self._lock = threading.Lock()
        self._bind()

    def _bind(self) -> None:
        self.growths, self.changes = self.bank.growths, self.bank.changes
        self.runner.bind(self.bank.tensors)

    def _refresh(self) -> None:
        slots, self.changes = self.bank.changed_since(self.changes), self.bank.changes
        self.runner.refresh(self.bank.tensors, slots)

    def run(self, images: Array, slots: NDArray[np.int64]) -> Array:
        """Images (B, 3, H, W) and the slot of each (B,) -> features (B, C); for probes all of them."""
        # Of several threads the first one binds what has changed, and the others wait for that.
        with self._lock:
            if self.growths != self.bank.growths:
                self._bind()
            elif self.changes != self.bank.changes:
                self._refresh()
        return self.runner.run(images, slots) if self.bank.layout.by_slot else self.runner.run(images)


@dataclass(frozen=True)
class SharedTask:
    """A task in a slot of a bank, with its head."""

    bank: Bank
    slot: int
    head: Head
    columns: slice = field(default_factory=lambda: slice(None))
    """The features that its head reads."""

    @classmethod
    def write(cls, bank: Bank, weights: AdapterWeights, head: Head) -> Self:
        """Put a task into a free slot of a bank."""
        return cls(bank, bank.write(weights), head)

    @classmethod
    def alone(cls, bundle: Bundle, layout: SharedLayout | None = None, scales: BankScales | None = None) -> Self:
        """Put a bundle's task into a bank of its own, for the graph of a layout; None is the task's own.

        `scales` are the `bank_scales` of the file that reads the bank.

        Raises:
            BundleError: no shared graph can serve the task.
        """
        bank = Bank(layout or layout_of(bundle.record), scales=scales)
        slot = bank.write(adapter_weights(bundle))
        return cls(bank, slot, bundle.head, bank.layout.columns(bundle.record.features, slot))

    def slots(self, count: int) -> NDArray[np.int64]:
        """The task's slot for each of `count` images."""
        return np.full(count, self.slot, dtype=np.int64)

    def plain(self) -> Self:
        """The backbone without the task's adapter, in a slot of its own: the features that timm's own head reads."""
        columns = self.bank.layout.columns("cls", self.slot)
        return replace(self, slot=self.bank.write({}), columns=columns)

    def features_by(self, runner: Runner) -> Callable[[Array], Array]:
        """Bind the bank to a runner of the shared graph: images (B, 3, H, W) -> the head's features (B, F)."""
        shared = SharedRunner(runner, self.bank)
        return lambda images: shared.run(images, self.slots(len(images)))[:, self.columns]

    def answer_by(self, runner: Runner) -> Callable[[Array], Array]:
        """The same for the task's logits (B, K)."""
        features = self.features_by(runner)
        return lambda images: apply_head(features(images), self.head)
