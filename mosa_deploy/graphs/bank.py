"""The bank: the adapter weights of many tasks stacked by slot, (T, ...), as the shared graph reads them.

A task with a smaller bottleneck, or with adapters in some blocks alone, is padded with zeros. Padding adds nothing:
whatever the activation makes of 0 is multiplied by 0. An empty slot is all zeros, so it is the plain backbone.
A graph whose tokens were scaled reads rows that are scaled the other way, see `mosa_deploy.bundles.graph_index`.
"""

import mmap
import sys
from collections.abc import Mapping
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError
from mosa_deploy.graphs.adapter_weights import AdapterWeights, SharedLayout
from mosa_deploy.utils.shapes import shapes_of

Number = TypeVar("Number", bound=np.generic)

BankScales = Mapping[str, Array]
"""Name of a bank tensor -> what each of its rows is multiplied by."""


class Bank:
    """Slots of equal size for the tasks of one shared graph. Their number and the bottleneck grow by doubling.

    The graph reads `tensors`. Growing replaces the tensors and increments `growths`. A runner that keeps a copy calls
    `changed_since` to learn which slots to upload again. `limits` are the most slots and the largest bottleneck that
    the graph was built for; None if it takes any. `scales` are those of the file that reads the bank,
    `GraphIndex.bank_scales`; None if it has none.
    """

    def __init__(
        self,
        layout: SharedLayout,
        bottleneck: int = 16,
        capacity: int = 1,
        limits: tuple[int, int] | None = None,
        scales: BankScales | None = None,
    ) -> None:
        self.layout, self.limits, self.scales = layout, limits, scales or {}
        slots, widest = limits or (capacity, bottleneck)
        self.capacity, self.bottleneck = min(capacity, slots), min(bottleneck, widest)
        self.growths = self.changes = 0
        self.free = list(range(self.capacity))
        self.tensors = self._zeros()
        self._changed = [0] * self.capacity

    def _zeros(self) -> dict[str, Array]:
        shapes = self.layout.shapes(self.bottleneck)
        return {name: zero_pages((self.capacity, *shape), np.float32) for name, shape in shapes.items()}

    def write(self, weights: AdapterWeights) -> int:
        """Put a task into a free slot and return the slot. The bank grows if none is free or the task is wider.

        Raises:
            ConfigError: the weights have another layout, their bottleneck is above the limit, or no slot is free and
                none may be added.
        """
        needed = max((value.shape[0] for name, value in weights.items() if name.endswith(".up")), default=0)
        if not shapes_of(weights).items() <= self.layout.shapes(needed).items():
            raise ConfigError(f"the adapter weights are not of {self.layout}: give those of this backbone")
        self._check_limits(needed)
        if not self.free or needed > self.bottleneck:
            self._grow(capacity=self.capacity * (1 if self.free else 2), bottleneck=max(self.bottleneck, needed))
        slot = self.free.pop(0)
        for name, value in weights.items():
            rows = self.scales[name][:, None] * value if name in self.scales else value
            _corner(self.tensors[name][slot], value)[...] = rows
        self._mark_changed(slot)
        return slot

    def clear(self, slot: int) -> None:
        """Empty a slot, so that another task can take it."""
        for tensor in self.tensors.values():
            tensor[slot] = 0
        self.free.append(slot)
        self._mark_changed(slot)

    def changed_since(self, changes: int) -> list[int]:
        """The slots that were written or cleared since `self.changes` had this value."""
        return [slot for slot, last in enumerate(self._changed) if last > changes]

    def _mark_changed(self, slot: int) -> None:
        self.changes += 1
        self._changed[slot] = self.changes

    def _check_limits(self, bottleneck: int) -> None:
        if self.limits is None:
            return
        slots, widest = self.limits
        if bottleneck > widest:
            raise ConfigError(
                f"a bottleneck of {bottleneck} is above the {widest} that the shared graph was built for: build it with"
                f" --bank-bottleneck {bottleneck}, or serve this task folded"
            )
        if not self.free and self.capacity == slots:
            raise ConfigError(
                f"all {slots} slots that the shared graph was built for are taken: build it with --bank-slots"
                f" {2 * slots}, or serve this task folded"
            )

    def _grow(self, capacity: int, bottleneck: int) -> None:
        while self.bottleneck < bottleneck:
            self.bottleneck *= 2
        if self.limits is not None:
            slots, widest = self.limits
            capacity, self.bottleneck = min(capacity, slots), min(self.bottleneck, widest)
        self.free += range(self.capacity, capacity)
        self._changed += [0] * (capacity - self.capacity)
        self.capacity = capacity
        before, self.tensors = self.tensors, self._zeros()
        for name, value in before.items():
            _corner(self.tensors[name], value)[...] = value
        self.growths += 1


def zero_pages(shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """Zeros of which a page takes memory only once it is written.

    numpy would ask the kernel for huge pages, so that the first slot of each tensor takes 2 MB: room for a hundred.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if sys.platform != "linux" or not size:
        return np.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype=dtype).reshape(shape)


def _corner(whole: Array, part: Array) -> Array:
    """The start of every axis of `whole`, in the shape of `part`, as a view."""
    for axis, size in enumerate(part.shape):
        whole = whole[(slice(None),) * axis + (slice(size),)]
    return whole
