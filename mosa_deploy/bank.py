"""The bank: the rows of many tasks stacked by slot, (T, ...), as the shared graph reads them.

A task of a smaller bottleneck is padded with zeros: act(0) * 0 adds nothing, whatever the activation makes of 0. An
empty slot is all zeros, which is the plain backbone.
"""

import mmap
import sys
from math import prod

import numpy as np

from mosa_deploy.errors import ConfigError
from mosa_deploy.preprocess import Array
from mosa_deploy.rows import Layout, Rows
from mosa_deploy.shapes import shapes_of


class Bank:
    """Slots of equal size for the tasks of one shared graph; both their number and the bottleneck grow by doubling.

    `tensors` are what the graph reads. Growing replaces them, so whoever holds them looks at `growths`; whoever holds a
    copy looks at `changes`. `limit` is the largest bottleneck that the graph takes, where it was built for one.
    """

    def __init__(self, layout: Layout, bottleneck: int = 16, capacity: int = 1, limit: int | None = None) -> None:
        self.layout, self.bottleneck, self.capacity, self.limit = layout, bottleneck, capacity, limit
        self.growths = self.changes = 0
        self.free = list(range(capacity))
        self.tensors = self._zeros()

    def _zeros(self) -> dict[str, Array]:
        shapes = self.layout.shapes(self.bottleneck)
        return {name: untouched((self.capacity, *shape)) for name, shape in shapes.items()}

    def write(self, rows: Rows) -> int:
        """Put a task into a free slot, growing if there is none or if its bottleneck is larger; returns the slot.

        Raises:
            ConfigError: rows of another layout, or of a bottleneck above the limit.
        """
        needed = max((value.shape[0] for name, value in rows.items() if name.endswith(".up")), default=0)
        if rows and shapes_of(rows) != self.layout.shapes(needed):
            raise ConfigError(f"the rows are not of {self.layout}: give the backbone's own")
        if self.limit is not None and needed > self.limit:
            raise ConfigError(
                f"a bottleneck of {needed} is above the {self.limit} that the shared graph was built for: build it for"
                f" {needed}, or serve this task folded"
            )
        if not self.free or needed > self.bottleneck:
            self._grow(capacity=self.capacity * (1 if self.free else 2), bottleneck=max(self.bottleneck, needed))
        slot = self.free.pop(0)
        for name, value in rows.items():
            _corner(self.tensors[name][slot], value)[...] = value
        self.changes += 1
        return slot

    def clear(self, slot: int) -> None:
        """Empty a slot, for another task to take."""
        for tensor in self.tensors.values():
            tensor[slot] = 0
        self.free.append(slot)
        self.changes += 1

    def _grow(self, capacity: int, bottleneck: int) -> None:
        while self.bottleneck < bottleneck:
            self.bottleneck *= 2
        if self.limit is not None:
            self.bottleneck = min(self.bottleneck, self.limit)
        self.free += range(self.capacity, capacity)
        self.capacity = capacity
        before, self.tensors = self.tensors, self._zeros()
        for name, value in before.items():
            _corner(self.tensors[name], value)[...] = value
        self.growths += 1


def untouched(shape: tuple[int, ...]) -> Array:
    """Zeros that take memory only where they are written, by the page.

    numpy asks the kernel for huge pages: the first slot of each tensor would then take 2 MB, room for a hundred tasks.
    """
    size = prod(shape) * np.dtype(np.float32).itemsize
    if sys.platform != "linux" or not size:
        return np.zeros(shape, dtype=np.float32)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype=np.float32).reshape(shape)


def _corner(whole: Array, part: Array) -> Array:
    """The view of `whole` that has the shape of `part`."""
    for axis, size in enumerate(part.shape):
        whole = whole[(slice(None),) * axis + (slice(size),)]
    return whole
