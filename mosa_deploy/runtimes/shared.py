"""The shared graph with a bank of tasks bound to it."""

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.runner import Runner


class SharedRunner:
    """Runs a shared graph whose bank is bound once instead of being fed at each call.

    The next run sees every slot that was written or cleared before it.
    """

    def __init__(self, runner: Runner, bank: Bank) -> None:
        self.runner, self.bank = runner, bank
        self._bind()

    def _bind(self) -> None:
        self.growths, self.changes = self.bank.growths, self.bank.changes
        self.runner.bind(self.bank.tensors)

    def _refresh(self) -> None:
        slots, self.changes = self.bank.changed_since(self.changes), self.bank.changes
        self.runner.refresh(self.bank.tensors, slots)

    def run(self, images: Array, slots: NDArray[np.int64]) -> Array:
        """Images (B, 3, H, W) and the slot of each (B,) -> features (B, C)."""
        if self.growths != self.bank.growths:
            self._bind()
        elif self.changes != self.bank.changes:
            self._refresh()
        return self.runner.run(images, slots)
