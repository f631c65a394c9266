"""Compare the names and shapes of two sets of tensors, and name all differences at once."""

from collections.abc import Mapping
from typing import Protocol

Shapes = dict[str, tuple[int, ...]]


class HasShape(Protocol):
    """A torch tensor or a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension."""
        ...


def shapes_of(tensors: Mapping[str, HasShape]) -> Shapes:
    """Name -> shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shape_faults(expected: Shapes, given: Shapes) -> str:
    """Every missing, unexpected and misshapen tensor, sorted, in one line; empty if there is none."""
    faults = [f"missing {name}" for name in expected.keys() - given.keys()]
    faults += [f"unexpected {name}" for name in given.keys() - expected.keys()]
    shared = expected.keys() & given.keys()
    faults += [f"{name} is {given[name]}, not {expected[name]}" for name in shared if given[name] != expected[name]]
    return "; ".join(sorted(faults))
