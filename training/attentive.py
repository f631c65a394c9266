"""The attentive probe: a query that weighs the last block's patches, and a linear head, trained on frozen patches.

The backbone is frozen and images are not augmented, so every image gives the same patches in every epoch. They are
computed once and kept in half precision, unless they would need too much memory.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mosa_deploy.adapters.attach import freeze, load_task_state, task_state
from mosa_deploy.adapters.loss import label_loss
from mosa_deploy.adapters.probe import Probe, attend
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.seeds import derive
from training.balance import class_weights, epoch_order
from training.data import ImageSet, normalise
from training.loop import Row, progress
from training.recipe import Recipe
from training.scores import rank, validation_row

KEPT_BYTES = 2 << 30
"""The most memory for the patches of one set; those of larger sets are computed again in every epoch."""

BATCH = 256


@dataclass(frozen=True)
class Patches:
    """The frozen patches of a set of images, (n, N, C) for any n of them."""

    probe: Probe
    images: ImageSet
    preprocess: Preprocess
    device: str
    kept: Tensor | None = None

    @classmethod
    def of(cls, probe: Probe, images: ImageSet, preprocess: Preprocess, device: str) -> "Patches":
        """Compute and keep them, if they need no more than `KEPT_BYTES`."""
        found = cls(probe, images, preprocess, device)
        one = found.compute(images.take([0]))
        if len(images) * one[0].numel() * one.element_size() > KEPT_BYTES:
            return found
        batches = progress(images.split(BATCH), "patches", math.ceil(len(images) / BATCH))
        return cls(probe, images, preprocess, device, torch.cat([found.compute(pixels) for pixels in batches]))

    @torch.no_grad()
    def compute(self, pixels: Tensor) -> Tensor:
        """The patches of these images, fp16; they are normalised, so that they fit."""
        return self.probe.eval().patches(normalise(pixels.to(self.device), self.preprocess)).half()

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Patches in fp32 and labels of the images in this order, `size` at a time."""
        for index in order.split(size):
            patches = self.compute(self.images.take(index)) if self.kept is None else self.kept[index]
            yield patches.float(), self.images.labels[index].to(self.device)


def fit_attentive(
    probe: Probe,
    train: ImageSet,
    validation: ImageSet,
    preprocess: Preprocess,
    recipe: Recipe,
    seed: int,
    device: str,
) -> list[Row]:
    """Train query and head, leave those of the epoch that is best on validation, and return one row per epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    freeze(probe.to(device))
    own, held_out = (Patches.of(probe, images, preprocess, device) for images in (train, validation))
    trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.lr, weight_decay=recipe.weight_decay)
    steps = math.ceil(len(train) / recipe.batch_size)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * steps,
        warmup_t=int(min(recipe.warmup_epochs, recipe.epochs / 4) * steps),
        warmup_lr_init=recipe.lr * 1e-2,
        t_in_epochs=False,
    )
    rows: list[Row] = []
    best, state = (-math.inf, 0.0), task_state(probe)
    head = probe.get_classifier()
    assert isinstance(head, nn.Linear)
    classes = head.out_features
    weight = class_weights(train.labels, classes).to(device) if recipe.balance == "loss" else None
    for epoch in tqdm(range(recipe.epochs), desc="fitting", unit=" epochs", leave=False, disable=None):
        torch.manual_seed(derive(seed, "epoch", epoch))
        order, total = epoch_order(train.labels, classes, recipe.balance), 0.0
        for step, (patches, labels) in enumerate(own.batches(order, recipe.batch_size)):
            schedule.step_update(epoch * steps + step)
            logits = answer(probe, patches)
            loss = (
                F.cross_entropy(logits, labels, weight)
                if recipe.loss == "ce"
                else label_loss(logits, labels, recipe.loss)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(labels)
        if not math.isfinite(total):
            raise TrainingError(f"the loss is {total} at epoch {epoch + 1}: lower --lr (now {recipe.lr:g})")
        rows.append({"epoch": epoch + 1, "cross_entropy": total / len(train), **validate(probe, held_out)})
        found = rank(rows[-1], recipe.select)
        if found > best:
            best, state = found, copy.deepcopy(task_state(probe))
    load_task_state(probe, state)
    return rows


def answer(probe: Probe, patches: Tensor) -> Tensor:
    """Patches (B, N, C) -> logits (B, K)."""
    assert probe.query is not None
    logits: Tensor = probe.head(attend(patches, probe.query))
    return logits


@torch.no_grad()
def validate(probe: Probe, held_out: Patches) -> Row:
    """Loss and accuracies on the validation set."""
    order = torch.arange(len(held_out.images))
    logits = torch.cat([answer(probe, patches).cpu() for patches, _ in held_out.batches(order, BATCH)])
    return validation_row(logits, held_out.images.labels)
