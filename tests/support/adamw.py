"""AdamW with experts, written out in numpy, and the same by one of our optimisers."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig
from training.reference import ExpertAdamW

Numbers = NDArray[np.float64]

BETAS, EPS, DECAY, EXPERTS = (0.9, 0.999), 1e-6, 0.3, 3
RATES = (1e-2, 3e-2, 2e-2, 1e-2, 5e-3, 1e-2)
DRAWN = ([0], [0], [1, 0], [0, 0], [2], [1])
"""The experts of each step: one that waits, one that is drawn twice in one step."""


def adamw(
    start: Numbers, base: Numbers, owner: NDArray[np.int64], gradients: list[Numbers], decay: float, skip: bool = False
) -> Numbers:
    """AdamW with a step count per expert, entry by entry; with `skip` nothing of an undrawn expert changes."""
    moved = start.copy()
    for place in np.ndindex(start.shape):
        steps, m, v = 0, 0.0, 0.0
        for gradient, drawn, lr in zip(gradients, DRAWN, RATES, strict=True):
            if skip and owner[place] not in drawn:
                continue
            steps += int(owner[place] in drawn)
            m = BETAS[0] * m + (1 - BETAS[0]) * float(gradient[place])
            v = BETAS[1] * v + (1 - BETAS[1]) * float(gradient[place]) ** 2
            step = 0.0
            if steps:
                step = (m / (1 - BETAS[0] ** steps)) / (math.sqrt(v / (1 - BETAS[1] ** steps)) + EPS)
            moved[place] -= lr * (decay * (base[place] + moved[place]) + step)
    return moved


def tuned(
    parameter: Tensor, layer: SplitLinear, gradients: list[Numbers], decay: float, kind: type[ExpertAdamW] = ExpertAdamW
) -> Numbers:
    """The same by an optimiser of ours."""
    group = {"params": [parameter], "weight_decay": decay}
    optimiser = kind([group], [layer], lr=1.0, betas=BETAS, eps=EPS)
    for gradient, drawn, lr in zip(gradients, DRAWN, RATES, strict=True):
        layer.drawn, parameter.grad = drawn, torch.from_numpy(gradient)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
    return parameter.detach().numpy()


def split_layer() -> SplitLinear:
    """A split projection with a W0 of its own, in float64."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 5, dtype=torch.float64)
    split = SplitLinear.from_base(linear, AdapterConfig(experts=EXPERTS), torch.Generator().manual_seed(0))
    nn.init.normal_(split.weight)
    return split


def gradients_of(owner: NDArray[np.int64]) -> list[Numbers]:
    """Random gradients, zero where the expert is not drawn."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(owner.shape) * np.isin(owner, drawn) for drawn in DRAWN]
