"""Several sets of images as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.data import Batch, Cut, ImageSet
from training.tasks.base import Example


@dataclass(frozen=True)
class JoinedSet:
    """The images of several sets of one size, in their order, with labels (N,) of their own."""

    parts: Sequence[ImageSet]
    labels: Tensor

    @classmethod
    def of(cls, parts: Sequence[ImageSet], first: Sequence[int]) -> "JoinedSet":
        """Sets whose labels begin at the numbers `first`."""
        return cls(parts, torch.cat([part.labels + start for part, start in zip(parts, first, strict=True)]))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def ends(self) -> Tensor:
        """The row after the last one of each part."""
        return torch.tensor([len(part) for part in self.parts]).cumsum(0)

    @property
    def examples(self) -> Sequence[Example]:
        """See `ImageSet.examples`."""
        return [example for part in self.parts for example in part.examples]

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """See `ImageSet.take`."""
        index = torch.as_tensor(index, dtype=torch.int64)
        which = torch.bucketize(index, self.ends, right=True)
        found, places = list[Tensor](), list[Tensor]()
        for i, part in enumerate(self.parts):
            mine = (which == i).nonzero().flatten()
            if len(mine) or not i:
                found.append(part.take(index[mine] - (self.ends[i] - len(part))))
                places.append(mine)
        return torch.cat(found)[torch.cat(places).argsort()]

    def split(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.split`."""
        return (self.take(index) for index in torch.arange(len(self)).split(size))

    def batches(self, cuts: Sequence[Cut]) -> Iterator[Batch]:
        """See `ImageSource.batches`."""
        return (Batch(self.take(cut.rows), self.labels[cut.rows], cut) for cut in cuts)

    def settled(self) -> ImageSet:
        """See `ImageSource.settled`."""
        return self
