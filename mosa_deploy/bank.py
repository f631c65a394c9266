"""The bank: the rows of many tasks stacked by slot, (T, ...), as the shared graph reads them.

A task of a smaller bottleneck is padded with zeros: act(0) * 0 adds nothing, whatever the activation makes of 0. An
empty slot is all zeros, which is the plain backbone.
"""

import numpy as np

from mosa_deploy.errors import ConfigError
from mosa_deploy.preprocess import Array
from mosa_deploy.rows import PARTS, Rows


def bank_names(depth: int) -> list[str]:
    """The bank tensors in the order of the graph's inputs."""
    return [f"blocks.{i}.{part}" for i in range(depth) for part in PARTS]


class Bank:
    """Slots of equal size for the tasks of one backbone; both their number and the bottleneck grow by doubling.

    `tensors` are what the graph reads. Growing replaces them, so whoever holds them looks at `growths`; whoever holds a
    copy looks at `changes`.
    """

    def __init__(self, depth: int, width: int, bottleneck: int = 16, capacity: int = 1) -> None:
        self.depth, self.width = depth, width
        self.bottleneck, self.capacity = bottleneck, capacity
        self.growths = self.changes = 0
        self.free = list(range(capacity))
        self.tensors = self._zeros()

    def _zeros(self) -> dict[str, Array]:
        t, c, r = self.capacity, self.width, self.bottleneck
        shapes = {"down": (t, c, r), "down_bias": (t, r), "up": (t, r, c), "up_bias": (t, c)}
        return {
            f"blocks.{i}.{part}": np.zeros(shapes[part], dtype=np.float32) for i in range(self.depth) for part in PARTS
        }

    def write(self, rows: Rows) -> int:
        """Put a task into a free slot, growing if there is none or if its bottleneck is larger; returns the slot.

        Raises:
            ConfigError: rows of another depth or width.
        """
        names = bank_names(self.depth)
        if rows and (rows.keys() != set(names) or rows["blocks.0.up"].shape[1] != self.width):
            raise ConfigError(f"the rows are not of {self.depth} blocks of width {self.width}: give the backbone's own")
        needed = rows["blocks.0.down_bias"].shape[0] if rows else 0
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
        self.free += range(self.capacity, capacity)
        self.capacity = capacity
        before, self.tensors = self.tensors, self._zeros()
        for name, value in before.items():
            _corner(self.tensors[name], value)[...] = value
        self.growths += 1


def _corner(whole: Array, part: Array) -> Array:
    """The view of `whole` that has the shape of `part`."""
    for axis, size in enumerate(part.shape):
        whole = whole[(slice(None),) * axis + (slice(size),)]
    return whole
