"""What a test lets torchrun start: `python -m torch.distributed.run ... -m tests.support.two_ranks OUT [dies|ends]`."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.errors import command
from tests.support.images import PREPROCESS, random_images
from tests.support.models import perturb, toy_transformer
from training.devices import Computing
from training.loop import Row, Trainer
from training.ranks import Ranks, joined
from training.recipe import Recipe, adapter_config

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.0, epochs=2, batch_size=7, lr=1e-2)

RECIPES: dict[str, dict[str, Any]] = {
    "per-pass": {},
    "balanced": {"activate": "balanced", "ema": 0.5},
    "one pass": {"passes": 1, "consistency": 0.0},
    "weighted classes": {"balance": "loss", "dense_epochs": 1},
    "balanced sampler": {"balance": "sampler", "adapt_blocks": 1},
}


def trained(changes: dict[str, Any], ranks: Ranks) -> tuple[dict[str, Tensor], list[Row]]:
    """What a run of two epochs makes of the toy, and its history. The last batch has one image: a process has none."""
    recipe = dataclasses.replace(RECIPE, **changes)
    model = attach(toy_transformer(num_classes=3), adapter_config(recipe))
    perturb(model)
    images = random_images(22, 3), random_images(9, 3, seed=1)
    trainer = Trainer(model, *images, PREPROCESS, recipe, 0, Computing(ranks=ranks))

    def finished(trainer: Trainer) -> None:
        if "dies" in sys.argv and not ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        if "ends" in sys.argv:
            if ranks.first:
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)

    trainer.fit(finished)
    return task_state(trainer.model), trainer.state.history


@command
def main() -> None:
    """Train by every recipe; each process writes what it has."""
    with joined("cpu") as ranks:
        found = {name: trained(changes, ranks)[0] for name, changes in RECIPES.items()}
        torch.save(found, Path(sys.argv[1]) / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main()
