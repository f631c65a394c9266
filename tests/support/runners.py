"""A runner that notes what it is told."""

from collections.abc import Mapping, Sequence

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.runtimes.names import Arithmetic


class NotingRunner:
    """All of a `Runner` but `run`."""

    precision: Arithmetic = "fp32"
    sizes = None

    def __init__(self) -> None:
        self.bound: list[Mapping[str, Array]] = []
        self.refreshed: list[Sequence[int]] = []

    def bind(self, tensors: Mapping[str, Array]) -> None:
        self.bound.append(tensors)

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        self.refreshed.append(slots)

    def device_lost(self) -> bool:
        return False
