"""One update of the weights: a batch goes through the model in parts, and the gradients of all parts are added up.

Each process of a run has a part of the batch, and may compute it in parts again.
"""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from mosa_deploy.adapters.draws import held_draws, place
from mosa_deploy.adapters.loss import label_losses, pass_losses
from mosa_deploy.backbones.foldable import Transformer
from training.attention import unfused
from training.average import WeightAverage
from training.data import Batch
from training.devices import Computing
from training.distil import Held
from training.entry import Entry
from training.optimiser import is_second_order
from training.recipe import Recipe


class Step:
    """Updates what is tuned in `model` by a batch; `class_weights` (K,) weigh the classes in the cross entropy."""

    held: Held | None = None
    """What a task that gets more classes holds on to."""

    def __init__(
        self,
        model: Transformer,
        entry: Entry,
        optimizer: Optimizer,
        average: WeightAverage,
        recipe: Recipe,
        class_weights: Tensor | None,
        computing: Computing,
    ) -> None:
        self.model, self.entry, self.optimizer, self.average = model, entry, optimizer, average
        self.recipe, self.class_weights = recipe, class_weights
        self.execution, self.ranks, self.device = computing.execution, computing.ranks, computing.device
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self.autocast = computing.autocast()
        self.second_order = is_second_order(optimizer)
        # The fused kernels have no second derivatives.
        self.unfused = self.second_order or (computing.device == "cpu" and computing.precision == "bf16")

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms of the loss."""
        return ("cross_entropy", "consistency", *(["distillation"] if self.held else []))

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        """The mean of each term over the whole batch, (terms,) on the CPU, and the number of its images.

        `batch` is this process's part of it.
        """
        totals = self.ranks.sum(self.weights(batch))
        images = int(totals[1])
        losses = torch.zeros(len(self.terms))
        if not images:
            return losses, 0
        self.optimizer.zero_grad()
        with held_draws(self.model), unfused(self.model, self.unfused):
            for part in batch.parts(self.execution.accumulate):
                losses += self.backward(part, self.weights(part) / totals)
        self.ranks.add_gradients(self.parameters)
        if self.recipe.clip_grad:
            clip_grad_norm_(self.parameters, self.recipe.clip_grad)
        self.optimizer.step()
        self.average.update()
        if self.second_order:
            self.optimizer.zero_grad()  # the gradients hold the graph
        return self.ranks.sum(losses), images

    def weights(self, batch: Batch) -> Tensor:
        """What a batch counts in the means of the losses: the sum of its images' class weights, and their number."""
        count = len(batch.labels)
        if self.class_weights is None:
            weighed: float = count
        elif batch.labels.is_floating_point():
            weighed = float((batch.labels @ self.class_weights).sum())
        else:
            weighed = float(self.class_weights.cpu()[batch.labels].sum())
        return torch.tensor([weighed, count], dtype=torch.float64)

    def backward(self, part: Batch, shares: Tensor) -> Tensor:
        """Add the gradients of a part, which has these shares in the losses of the batch; returns its terms."""
        place(self.model, part.cut.places, part.cut.total)
        with self.autocast:
            logits = self.logits(self.entry.prepare(part.pixels.to(self.device)))
        labels = part.labels.to(self.device).repeat_interleave(self.recipe.head_samples, 0)
        losses = self.losses(logits, labels)
        terms = [float(share) * loss for share, loss in zip(shares, losses, strict=True)]
        total = terms[0] + self.recipe.consistency * terms[1]
        if self.held is not None:
            held = self.held.loss(logits, part.cut.rows, self.recipe.passes, self.recipe.head_samples)
            terms.append(float(shares[1]) * held)
            total = total + self.held.weight * terms[2]
        self.add_gradients(total)
        return torch.stack(terms).detach().cpu()

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy, or what takes its place, and consistency of the passes."""
        recipe = self.recipe
        if recipe.loss == "ce":
            return pass_losses(logits, labels, recipe.passes, self.class_weights)
        return label_losses(logits, labels, recipe.passes, recipe.loss)

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parts before; with their graph, if the optimiser needs it."""
        if not self.second_order:
            loss.backward()
            return
        # `backward` with a graph would make cycles that hold memory.
        found = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient

    def logits(self, prepared: Tensor) -> Tensor:
        """Prepared inputs (B, ...) -> logits (passes * B, K), with all passes in one batch."""
        return self.entry.forward(prepared.repeat(self.recipe.passes, *[1] * (prepared.ndim - 1)))
