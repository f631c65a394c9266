"""The exponential moving average of a run's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of what is tuned: w <- d * w + (1 - d) * parameter, after every step. A decay of 0 keeps no average.

    d = min(decay, (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage: a constant decay
    would keep the start of a run, which knows nothing, in the average of its first epochs.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad and decay]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        if self.decay:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            get_ema_multi_avg_fn(decay)(self.averages, [each.detach() for each in self.parameters], None)
            self.steps += 1

    @torch.no_grad()
    def load(self, averages: list[Tensor], steps: int) -> None:
        """Restore what a checkpoint kept after this many steps."""
        self.steps = steps
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
