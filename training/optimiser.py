"""How the weights are updated: an optimiser of timm by name, and the schedule of its learning rate.

What an optimiser keeps is in its `state_dict`, its random numbers derive from the epoch, and a schedule follows from
the settings and the history: a run that is resumed goes on as if it had never been broken.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, kron, list_optimizers
from timm.optim.adahessian import Adahessian
from timm.optim.muon import Muon
from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.errors import ConfigError, unknown_name
from training.recipe import Recipe
from training.recipes import CONVENTIONS
from training.reference import expert_adamw
from training.scores import rank
from training.tune_options import ExecutionOptions


def check_optimiser(recipe: Recipe, execution: ExecutionOptions, processes: int = 1) -> None:
    """Check that the optimiser of a recipe can be made here, and can compute steps as they are asked for.

    Raises:
        ConfigError: there is no such optimiser, it needs a package or a device that is not here, or it needs second
            derivatives and an option stands against them.
    """
    name, known = recipe.opt, [str(each) for each in list_optimizers()]
    if name not in known:
        raise ConfigError(unknown_name("optimiser", name, known))
    try:
        get_optimizer_class(name)
        if is_kron(name) and not kron.has_opt_einsum:
            raise ImportError("its products need the package opt_einsum")
    except (ImportError, AssertionError) as error:
        raise ConfigError(f"--opt {name} cannot be used here ({error}): choose another, such as adamw") from None
    against = {
        f"--clip-grad {recipe.clip_grad:g}: dividing by second derivatives undoes it": recipe.clip_grad > 0,
        f"--accumulate {execution.accumulate}: it would keep every part until the last": execution.accumulate > 1,
        f"{processes} processes: each would have second derivatives of its own images": processes > 1,
        "--checkpointing: it needs every activation": execution.checkpointing,
        "--compile: compiled code has no second derivatives": execution.compile,
    }
    if get_optimizer_info(name).second_order and any(against.values()):
        raise ConfigError(f"--opt {name} excludes {'; '.join(text for text, given in against.items() if given)}")


def optimiser_remarks(recipe: Recipe, given: Mapping[str, Any]) -> list[str]:
    """A line if another optimiser runs at a learning rate that was chosen for AdamW, else none."""
    if recipe.opt == "adamw" or "lr" in given:
        return []
    return [f"--opt {recipe.opt} takes the learning rate {recipe.lr:g}, which was chosen for adamw: try others by --lr"]


def make_optimizer(model: Transformer, recipe: Recipe) -> Optimizer:
    """The optimiser of everything in `model` that is tuned; biases and norms have no decay."""
    if CONVENTIONS[recipe.recipe].steps_per_expert:
        return expert_adamw(model, recipe.lr, recipe.weight_decay)
    own: dict[str, Any] = {}
    if recipe.opt == "adamw":
        own["eps"] = 1e-6  # of the MoSA paper
    if get_optimizer_info(recipe.opt).opt_class is Muon:
        own["fallback_list"] = ("*.bias",)  # those of all experts (E, C) only look like a matrix
    if is_kron(recipe.opt):
        own["deterministic"] = True
    if recipe.layer_decay < 1:
        own["layer_decay"] = recipe.layer_decay
    optimizer = create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, **own)
    if is_kron(recipe.opt):
        # It would compile its small products, which takes a C++ compiler and minutes.
        vars(optimizer)["step"] = torch.compiler.set_stance("force_eager")(optimizer.step)
    return optimizer


def is_kron(name: str) -> bool:
    """Whether a name stands for PSGD with Kronecker products, in any of its variants."""
    return get_optimizer_info(name).opt_class is kron.Kron


def is_second_order(optimizer: Optimizer) -> bool:
    """Whether the optimiser differentiates the gradients that it is given."""
    return bool(getattr(optimizer, "is_second_order", False))


def seed_optimizer(optimizer: Optimizer, seed: int) -> None:
    """Seed the random numbers that an optimiser draws by itself and does not save."""
    if isinstance(optimizer, Adahessian):
        optimizer.seed = seed
        optimizer.generator = torch.Generator(optimizer.param_groups[0]["params"][0].device).manual_seed(seed)


class Schedule:
    """Sets the learning rate before each step, as timm's schedule of the recipe's name has it.

    The rate changes with every step, in recipes that say so with every epoch. `plateau` changes it after epochs, by
    what --select names. Warm-up takes a quarter of the epochs at most.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, steps: int) -> None:
        """`steps` is the number of steps of an epoch."""
        self.recipe, self.steps = recipe, steps
        per_epoch = CONVENTIONS[recipe.recipe].lr_per_epoch
        on_epochs = recipe.sched == "plateau"
        self.rates = 1 if per_epoch or on_epochs else steps
        warmup = min(recipe.warmup_epochs, recipe.epochs / 4)
        warmup_t = math.ceil(warmup) if per_epoch or on_epochs else int(warmup * steps)
        with warnings.catch_warnings():
            # timm warns that checkpoints lack the state of `plateau`: ours need none.
            warnings.simplefilter("ignore", FutureWarning)
            self.timm, _ = create_scheduler_v2(
                optimizer,
                recipe.sched,
                num_epochs=recipe.epochs * self.rates,
                warmup_epochs=warmup_t,
                warmup_lr=0.0 if per_epoch else recipe.lr * 1e-2,
                step_on_epochs=on_epochs,
                updates_per_epoch=1,
                **shape(recipe, recipe.epochs * self.rates, warmup_t),
            )

    def before_step(self, epoch: int, step: int) -> None:
        """Set the rate of a step; both count from 0."""
        self.timm.step_update(epoch * self.rates + step * self.rates // self.steps)

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Take note of an epoch by its row of the history. A resumed run does so for every row that it has."""
        self.timm.step(int(row["epoch"]), abs(rank(row, self.recipe.select)[0]))


def shape(recipe: Recipe, total: int, warmup: int) -> dict[str, Any]:
    """The lengths of a schedule's phases, in its own unit: what timm's defaults are of a run of 300 epochs.

    `step` and `multistep` divide the rate by ten after 0.3, 0.6 and 0.9 of the run, `wsd` and `rsqrt` let it fall in
    the last fifth, `poly` is a straight line, and `plateau` divides it by ten after a thirtieth without improvement.
    """
    match recipe.sched:
        case "step":
            return {"decay_epochs": max(1, round(0.3 * total))}
        case "multistep":
            return {"decay_milestones": [round(part * total) for part in (0.3, 0.6, 0.9)]}
        case "wsd" | "rsqrt":
            return {"decay_epochs": max(1, round(0.2 * (total - warmup))), "stable_timescale": max(1, warmup)}
        case "poly":
            return {"decay_rate": 1.0}
        case "plateau":
            mode = "min" if recipe.select == "loss" else "max"
            return {"patience_epochs": max(1, recipe.epochs // 10), "plateau_mode": mode}
        case _:
            return {}
