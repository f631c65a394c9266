"""The exponential moving average of a run's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of what is tuned: w <- decay * w + (1 - decay) * parameter, after every step. 0 keeps no average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad and decay]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        if self.decay:
            get_ema_multi_avg_fn(self.decay)(self.averages, [each.detach() for each in self.parameters], None)

    @torch.no_grad()
    def load(self, averages: list[Tensor]) -> None:
        """Restore what a checkpoint kept."""
        for average, saved in zip(self.averages, averages, strict=True):
            average.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages in place of its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
