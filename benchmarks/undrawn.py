"""Compare two ways to treat entries whose expert was not drawn: `python -m benchmarks.undrawn`.

With draws per pass, an entry whose expert is not drawn has the gradient zero. AdamW then goes on: momentum moves the
entry and decay shrinks it. The alternative is to skip such entries: neither moments nor weights nor the count of the
expert's steps change. Both are tuned by the tasks' presets, and compared by validation accuracy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
import tyro
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.optim import Optimizer

from mosa_deploy.adapters.attach import attach, split_layers
from mosa_deploy.backbones.load import load_backbone
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.versions import provenance
from training.devices import Computing
from training.loop import Trainer
from training.reading import Reader
from training.recipe import adapter_config
from training.reference import ExpertAdamW
from training.tasks import find
from training.tune_options import ReadOptions


@dataclass(frozen=True)
class Config:
    """Compare skipping undrawn entries with training them by zero gradients."""

    tasks: tuple[str, ...] = ("sprites-location", "digits")
    seeds: int = 3
    precision: str = "bf16"
    out: Path = Path("benchmarks/results/undrawn")


class SkippingAdamW(ExpertAdamW):
    """AdamW that leaves entries alone whose expert was not drawn: weights, moments and the count of steps."""

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        layer = self.layers.get(parameter)
        state, weight = self.state[parameter], parameter.clone()
        moments = {name: state[name].clone() for name in ("m", "v") if state}
        super()._update(parameter, gradient, group)
        if layer is None:
            return
        drawn = parameter.new_zeros(layer.experts)
        drawn[list(layer.drawn)] = 1
        moved = self._of_entries(drawn, parameter, layer) > 0
        parameter.copy_(torch.where(moved, parameter, weight))
        for name, value in moments.items():
            state[name].copy_(torch.where(moved, state[name], value))


class SkippingTrainer(Trainer):
    """Trains with `SkippingAdamW`."""

    def make_optimizer(self) -> Optimizer:
        """See `Trainer.make_optimizer`."""
        groups = param_groups_weight_decay(self.model, self.recipe.weight_decay)
        return SkippingAdamW(groups, split_layers(self.model), lr=self.recipe.lr)


KINDS: dict[str, type[Trainer]] = {"zero gradients": Trainer, "skipped": SkippingTrainer}


def accuracy(name: str, kind: type[Trainer], seed: int, precision: str) -> float:
    """The best validation accuracy of a task by its preset, as `mosa tune` selects it."""
    task = find(name, (), None)
    splits, model = task.splits(None, None), load_backbone(task.recipe.backbone)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model), task.squash)
    reader = Reader(preprocess, ReadOptions())
    train, validation = reader.images(splits.train, "train"), reader.images(splits.validation, "validation")
    torch.manual_seed(derive(seed, "head"))
    model.reset_classifier(len(splits.classes))
    attach(model, adapter_config(task.recipe), seed)
    trainer = kind(model, train, validation, preprocess, task.recipe, seed, Computing(precision=precision))
    trainer.fit(lambda trainer: print(f"{name}, seed {seed}, epoch {trainer.state.epoch}", flush=True))
    return max(row["validation_accuracy"] for row in trainer.state.history)


def main() -> None:
    """Write `undrawn.md` and `undrawn.csv`."""
    config = tyro.cli(Config, prog="python -m benchmarks.undrawn")
    found = {
        (task, kind): [accuracy(task, KINDS[kind], seed, config.precision) for seed in range(config.seeds)]
        for task in config.tasks
        for kind in KINDS
    }
    runs = [(*key, seed, value) for key, values in found.items() for seed, value in enumerate(values)]
    write_csv(config.out / "undrawn.csv", ("task", "undrawn", "seed", "validation_accuracy"), runs)
    rows = [
        (*key, f"{np.mean(values):.4f}", ", ".join(f"{value:.3f}" for value in values)) for key, values in found.items()
    ]
    text = table(("task", "entries of undrawn experts", "validation accuracy", "of each seed"), rows)
    write_text(config.out / "undrawn.md", f"# Undrawn entries\n\n{provenance('benchmarks.undrawn')}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
