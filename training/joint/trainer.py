"""The training loop of several tasks at once: one adapter, one set with the images of all, and a head with their rows.

The head has the classes of all tasks side by side. The loss of an image is that of its own task: the logits of the
others take no part in its softmax. Task i of n_i images is drawn with probability n_i^(1/T) / sum_j n_j^(1/T), where T
is the sampling temperature: at 1 each image is seen once per epoch, and the higher it is, the more alike are the tasks.
An epoch has as many images as all tasks together.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from training.loop import Row, Trainer, logits_of
from training.scores import validation_row
from training.step import Step

OUTSIDE = -1e4
"""The logit of another task's class, whose probability is then zero. Infinity would make the consistency loss NaN."""


class JointStep(Step):
    """One update by images of several tasks."""

    tasks: Tensor
    """The task of each class, (K,); its trainer sets it."""

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Step.losses`; logits (passes * B, K), labels (B,)."""
        others = self.tasks[labels][:, None] != self.tasks
        return super().losses(logits.masked_fill(others.repeat(self.recipe.passes, 1), OUTSIDE), labels)


class JointTrainer(Trainer):
    """Tunes one adapter on the images of several tasks, and keeps the epoch with the best mean over the tasks."""

    step_kind = JointStep

    def __init__(self, *args: Any, classes: dict[str, int], temperature: float, **kwargs: Any) -> None:
        """`classes` is the number of classes of each task, in the order of their labels."""
        self.names, self.temperature = tuple(classes), temperature
        self.ends = torch.tensor([0, *classes.values()]).cumsum(0)
        self.tasks = torch.arange(len(classes)).repeat_interleave(torch.tensor([*classes.values()]))
        super().__init__(*args, **kwargs)
        assert isinstance(self.step, JointStep)
        self.step.tasks = self.tasks.to(self.device)

    def order(self) -> Tensor:
        """See `Trainer.order`."""
        return joint_order(self.tasks[self.train.labels], len(self.names), self.temperature)

    def validate(self) -> Row:
        """The mean over the tasks of what each is validated by, and the accuracy of each."""
        validation = self.validation.settled()
        logits = logits_of(self.model, self.entry, validation, self.device, torch.arange(len(validation)))
        found = dict[str, Row]()
        for name, (first, end) in zip(self.names, pairwise(self.ends.tolist()), strict=True):
            mine = (validation.labels >= first) & (validation.labels < end)
            found[name] = validation_row(logits[mine, first:end], validation.labels[mine] - first)
        rows = [*found.values()]
        mean = {column: sum(row[column] for row in rows) / len(rows) for column in rows[0]}
        return mean | {f"{name}_accuracy": row["validation_accuracy"] for name, row in found.items()}


def joint_order(tasks: Tensor, count: int, temperature: float) -> Tensor:
    """The images of an epoch by number, (N,), where `tasks` (N,) says of which of `count` tasks each image is.

    A task's images are drawn in random order, all of them before any comes again. The random numbers are those of
    torch's global generator.
    """
    sizes = tasks.bincount(minlength=count)
    drawn = [
        torch.cat([mine[torch.randperm(len(mine))] for _ in range(-(-number // len(mine)))])[:number]
        for number, mine in zip(
            shares(sizes.tolist(), temperature), ((tasks == i).nonzero().flatten() for i in range(count)), strict=True
        )
    ]
    order = torch.cat(drawn)
    return order[torch.randperm(len(order))]


def shares(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many of an epoch's images are of each task; their sum is that of `sizes`."""
    weights = torch.tensor(sizes, dtype=torch.float64) ** (1 / temperature)
    exact = sum(sizes) * weights / weights.sum()
    # Rounding the running sums keeps the total.
    ends = exact.cumsum(0).round().long().tolist()
    return [end - start for start, end in pairwise([0, *ends])]
