"""The first step of a task that gets more classes: the rows of the new ones are fitted before anything else changes.

Random rows would first drive the adapter away from what it knows. So the rows of the new classes start where the loss
has its minimum while adapter and old rows stay: a multinomial logistic regression on the features of the task as it
was, whose first rows are fixed,

    min over (W, b) of the new classes:   CE([W0; W] x + [b0; b], y) + LAMBDA * var(x) * |W|^2

over exemplars and new images (linear probing before fine-tuning, arXiv 2202.10054). The same pass gives the teacher's
logits.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.balance import class_weights
from training.distil import Held
from training.entry import Entry
from training.loop import Trainer
from training.unknown import logits_and_features, without_margin

LAMBDA = 1e-4
"""Weight of the penalty, on features of unit variance."""

ITERATIONS = 300


def begin(trainer: Trainer, old: int, weight: float) -> None:
    """Fit the rows of the classes after the first `old`, and let the task as it was teach with this weight."""
    train, head, ranks = trainer.train.settled(), trainer.model.get_classifier(), trainer.ranks
    assert isinstance(head, nn.Linear)
    logits, features = logits_and_features(trainer.model, unaugmented(trainer), train, trainer.device)
    weights = None if trainer.recipe.balance == "none" else class_weights(train.labels, trainer.classes)
    rows = fitted_rows(features, train.labels, logits[:, :old], trainer.classes - old, weights)
    # Each process has fitted them; rounding must not make them differ.
    rows = ranks.sum(rows if ranks.first else torch.zeros_like(rows))
    with torch.no_grad():
        head.weight[old:] = rows[:, :-1]
        head.bias[old:] = rows[:, -1]
    if weight:
        trainer.step.held = Held(logits[:, :old].to(trainer.device), weight)


def unaugmented(trainer: Trainer) -> Entry:
    """How training images enter the model as they are, without the margin that crops need."""
    entry = trainer.entry
    if not trainer.augmentation.is_on:
        return entry
    return replace(entry, prepare=lambda pixels: entry.prepare(without_margin(pixels, trainer.preprocess)))


def fitted_rows(features: Tensor, labels: Tensor, known: Tensor, new: int, weights: Tensor | None) -> Tensor:
    """The weights and, last, the biases (new, F + 1) of new classes, where the logits `known` (N, K) of others stay.

    `weights` (K + new,) weigh the classes. The features (N, F) have logits W x + b.
    """
    with torch.enable_grad():
        rows = torch.zeros(new, features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        x, fixed = features.double(), known.double()
        ones, penalty = torch.ones(len(x), 1, dtype=torch.float64), LAMBDA * float(x.var(0).mean())
        x, weighed = torch.cat([x, ones], 1), None if weights is None else weights.double()
        search = torch.optim.LBFGS([rows], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            value = F.cross_entropy(torch.cat([fixed, x @ rows.T], 1), labels, weighed)
            value = value + penalty * rows[:, :-1].square().sum()
            value.backward()
            return value

        search.step(loss)
    return rows.detach().float()
