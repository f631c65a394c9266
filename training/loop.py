"""The training loop: stochastic passes through the frozen backbone, selection by validation, resumable."""

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mosa_deploy.adapters.attach import freeze, load_task_state, reseed, set_dense, set_passes, task_state
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, Method
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.files import write_bytes
from mosa_deploy.utils.seeds import derive
from training.augment import Augmentation, switched_on
from training.average import WeightAverage
from training.balance import class_weights, epoch_order
from training.data import ImageSet, ImageSource
from training.devices import Computing
from training.drop_path import set_drop_path
from training.entry import Entry, cut
from training.execution import compiling, is_out_of_memory, less_memory, set_execution
from training.head_samples import set_head_dropout
from training.optimiser import Schedule, make_optimizer, seed_optimizer
from training.recipe import Recipe
from training.recipes import CONVENTIONS
from training.reference import set_backbone_dropout
from training.scores import rank, stopped_early, validation_row
from training.step import Step

Row = dict[str, float]

Watch = Callable[[Sequence[Row]], None]
"""Is shown the history after each epoch; what it raises ends the run, which can be resumed."""


@dataclass
class State:
    """The progress of a run, from which it can be resumed."""

    epoch: int = 0
    """Number of finished epochs."""
    best: tuple[float, float] = (-math.inf, 0.0)
    """The rank of the best epoch, see `training.scores.rank`."""
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)


PREDICTED = 256
"""Images of a batch outside of training."""

Item = TypeVar("Item")


def progress(batches: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The batches, with a bar on a terminal that tells their rate and the time left."""
    return iter(tqdm(batches, desc=what, total=total, unit=" batches", leave=False, disable=None))


def predict(model: nn.Module, images: ImageSet, preprocess: Preprocess, device: str) -> Tensor:
    """Logits (N, K) on the CPU, in fp32. The model is in evaluation mode, where split adapters act as merged ones."""
    return logits_of(model, Entry.whole(model, preprocess), images, device, torch.arange(len(images)))


@torch.inference_mode()
def logits_of(model: nn.Module, entry: Entry, images: ImageSet, device: str, rows: Tensor) -> Tensor:
    """The same of the images in these rows of a set, which enter the model as `entry` says."""
    model.eval()
    batches = progress(rows.split(PREDICTED), "predicting")
    return torch.cat([entry.forward(entry.prepare(images.take(index).to(device))).cpu() for index in batches])


class Trainer:
    """Tunes the adapters and the head of `model` on `train`, and keeps the epoch that is best on `validation`."""

    step_kind: type[Step] = Step

    def __init__(
        self,
        model: Transformer,
        train: ImageSource,
        validation: ImageSource,
        preprocess: Preprocess,
        recipe: Recipe,
        seed: int,
        computing: Computing | None = None,
        method: Method = "adapter",
    ) -> None:
        self.computing = computing or Computing()
        self.device = device = self.computing.device
        self.model, self.method = model.to(device), method
        self.classes = model.get_classifier().out_features
        self.augmentation = Augmentation(recipe, preprocess, self.classes, seed, device)
        conventions = CONVENTIONS[recipe.recipe]
        self.entry = Entry.whole(model, preprocess)
        if recipe.adapt_blocks is not None and not conventions.backbone_dropout:
            context = self.computing.autocast()
            self.entry, train, validation = cut(
                model, train, validation, preprocess, device, context, changing=self.augmentation.is_on
            )
        self.train, self.validation = train, validation
        self.preprocess, self.recipe, self.seed = preprocess, recipe, seed
        self.state, self.ranks = State(), self.computing.ranks
        self.steps = math.ceil(len(train) / recipe.batch_size)
        freeze(self.model, method)
        set_passes(self.model, recipe.passes)
        set_backbone_dropout(model, conventions.backbone_dropout)
        if method in BACKBONE_METHODS:
            set_drop_path(model, recipe.drop_path)
        set_execution(model, self.computing.execution)
        set_head_dropout(model, recipe.head_dropout, recipe.head_samples)
        self.optimizer = make_optimizer(model, recipe)
        self.average = WeightAverage(model, recipe.ema)
        weights = class_weights(train.labels, self.classes).to(device) if recipe.balance == "loss" else None
        self.step = self.step_kind(model, self.entry, self.optimizer, self.average, recipe, weights, self.computing)
        self.schedule = Schedule(self.optimizer, recipe, self.steps)

    def fit(self, finished: Callable[["Trainer"], None]) -> None:
        """Run the remaining epochs, call `finished` after each, and load the best epoch into the model.

        With --patience the run ends after so many epochs in a row that did not become the best one.

        Raises:
            TrainingError: the loss is not finite, or the device has too little memory. Finished epochs are kept.
        """
        while self.state.epoch < self.recipe.epochs and not stopped_early(self.state.history, self.recipe):
            try:
                with compiling(self.computing.execution):
                    row = self.run_epoch(self.state.epoch)
                with self.average.applied():
                    self.select(row | self.validate())
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise TrainingError(
                    f"{self.device} is out of memory: {less_memory(self.recipe.batch_size, self.computing.execution)}"
                ) from None
            finished(self)
        load_task_state(self.model, self.state.best_state, self.method)

    def select(self, row: Row) -> None:
        """Add an epoch to the history, and keep the model's state if it is the best one on validation."""
        self.state.history.append(row)
        self.state.epoch += 1
        self.schedule.after_epoch(row)
        best = rank(row, self.recipe.select)
        if best > self.state.best:
            self.state.best = best
            own = task_state(self.model, self.method)
            # The device may have no room for a second backbone.
            self.state.best_state = {name: value.to("cpu", copy=True) for name, value in own.items()}

    def validate(self) -> Row:
        """Loss and accuracies on the validation set."""
        validation = self.validation.settled()
        logits = torch.zeros(len(validation), self.classes)
        mine = self.ranks.share(torch.arange(len(validation)))
        if len(mine):
            logits[mine] = logits_of(self.model, self.entry, validation, self.device, mine)
        return validation_row(self.ranks.sum(logits), validation.labels)

    def order(self) -> Tensor:
        """The training images of an epoch by number, (N,)."""
        return epoch_order(self.train.labels, self.classes, self.recipe.balance)

    def run_epoch(self, epoch: int) -> Row:
        """Train for one epoch and return its row of the history. Its randomness derives from (seed, epoch) alone.

        Raises:
            TrainingError: the loss is not finite.
        """
        torch.manual_seed(derive(self.seed, "epoch", epoch))
        reseed(self.model, self.seed, epoch)
        seed_optimizer(self.optimizer, derive(self.seed, "optimiser", epoch))
        set_dense(self.model, epoch >= self.recipe.epochs - self.recipe.dense_epochs)
        order = self.order()
        if not self.ranks.first:  # Other images, other dropout.
            torch.manual_seed(derive(self.seed, "epoch", epoch, "rank", self.ranks.rank))
        self.model.train()
        sums, seen, start = torch.zeros(len(self.step.terms)), 0, time.perf_counter()
        left = f", {self.time_left()} for the epochs from here" if self.state.history else ""
        batches = self.train.batches(self.ranks.cuts(order, self.recipe.batch_size))
        batches = self.augmentation.changed(batches, epoch, self.computing.workers)
        bar = progress(batches, f"epoch {epoch + 1}/{self.recipe.epochs}{left}", self.steps)
        for step, batch in enumerate(bar):
            self.schedule.before_step(epoch, step)
            losses, images = self.step(self.augmentation.mixed(batch, epoch, step))
            if not torch.isfinite(losses).all():
                on = ", ".join(switched_on(self.recipe))
                raise TrainingError(
                    f"the loss is {float(losses.sum())} at epoch {epoch + 1}, step {step + 1}{on and f', with {on}'}:"
                    f" lower --lr (now {self.recipe.lr:g}){on and f' or leave out {on}'}; the epochs before are kept"
                )
            sums += losses * images
            seen += images
        means = sums / seen
        return {
            "epoch": epoch + 1,
            **dict(zip(self.step.terms, means.tolist(), strict=True)),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "images_per_second": seen / (time.perf_counter() - start),
        }

    def time_left(self) -> str:
        """How long the epochs that are not finished take, at the last one's speed, without validation: `12:30`."""
        images = (self.recipe.epochs - self.state.epoch) * len(self.train)
        return str(tqdm.format_interval(images / self.state.history[-1]["images_per_second"]))

    def save(self, path: Path) -> None:
        """Write a checkpoint of the finished epochs."""
        state = {**vars(self.state), "averages": self.average.averages, "optimizer": self.optimizer.state_dict()}
        state["averaged_steps"] = self.average.steps
        state["task"] = task_state(self.model, self.method)
        # Into memory first: torch.save does not say that the disk is full.
        content = io.BytesIO()
        torch.save(state, content)
        write_bytes(path, content.getvalue())

    def load(self, path: Path) -> None:
        """Restore a checkpoint."""
        saved = torch.load(path, weights_only=True, map_location="cpu")
        load_task_state(self.model, saved.pop("task"), self.method)
        self.optimizer.load_state_dict(saved.pop("optimizer"))
        averages, averaged_steps = saved.pop("averages", []), saved.pop("averaged_steps", 0)
        self.state = State(**saved)
        # Earlier checkpoints do not count the steps.
        self.average.load(averages, averaged_steps or self.state.epoch * self.steps)
        for row in self.state.history:
            self.schedule.after_epoch(row)
