"""`--opt` and `--sched`: timm's optimisers and schedules, and that a run that is resumed equals an unbroken one."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import get_optimizer_info, kron, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.errors import ConfigError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.loop import Trainer
from training.optimiser import Schedule, check_optimiser, is_kron, make_optimizer, optimiser_remarks
from training.recipe import Recipe, adapter_config
from training.tune_options import SCHEDULES, ExecutionOptions

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, epochs=3, batch_size=8, lr=1e-3, activate="balanced")

OF_TIMM = [str(name) for name in list_optimizers()]
HERE = [
    name
    for name in OF_TIMM
    if not isinstance(get_optimizer_info(name).opt_class, str) and (kron.has_opt_einsum or not is_kron(name))
]
"""The optimisers that need no package that is not here."""

KINDS = ("adafactorbv", "adahessian", "adam", "adan", "lion", "muon", "radam", "sgd")
"""One of each kind of state; the others run with the slow tests."""


def make_trainer(toy: Toy, depth: int = 1, **changes: Any) -> Trainer:
    recipe = dataclasses.replace(RECIPE, **changes)
    model = attach(toy(num_classes=3, depth=depth), adapter_config(recipe))
    perturb(model)
    return Trainer(model, random_images(8, 3), random_images(6, 3, seed=1), PREPROCESS, recipe, 0)


def broken_and_resumed(toy: Toy, checkpoint: Path, after: int, **changes: Any) -> Trainer:
    """A run that is broken after so many epochs, and its other part by another trainer."""

    def stop(trainer: Trainer) -> None:
        trainer.save(checkpoint)
        if trainer.state.epoch == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(toy, **changes).fit(stop)
    resumed = make_trainer(toy, **changes)
    resumed.load(checkpoint)
    resumed.fit(lambda trainer: None)
    return resumed


def assert_same_run(one: Trainer, other: Trainer) -> None:
    for name, value in task_state(one.model).items():
        assert torch.equal(value, task_state(other.model)[name]), name
    for row, again in zip(one.state.history, other.state.history, strict=True):
        assert {**row, "images_per_second": 0} == {**again, "images_per_second": 0}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in HERE])
def test_a_resumed_run_equals_an_unbroken_one_by_every_optimiser(toy: Toy, tmp_path: Path, name: str) -> None:
    unbroken = make_trainer(toy, opt=name)
    before = {name: value.clone() for name, value in task_state(unbroken.model).items()}
    unbroken.fit(lambda trainer: None)
    assert any(not torch.equal(before[name], value) for name, value in task_state(unbroken.model).items())
    assert_same_run(unbroken, broken_and_resumed(toy, tmp_path / "checkpoint.pt", 2, opt=name))


def test_a_resumed_average_of_the_weights_equals_an_unbroken_one(toy: Toy, tmp_path: Path) -> None:
    unbroken = make_trainer(toy, ema=0.99)
    unbroken.fit(lambda trainer: None)
    assert_same_run(unbroken, broken_and_resumed(toy, tmp_path / "checkpoint.pt", 2, ema=0.99))


def test_the_optimiser_of_presets_is_adamw_with_the_papers_eps(toy: Toy) -> None:
    optimizer = make_optimizer(attach(toy(), adapter_config(RECIPE)), RECIPE)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}


def test_other_optimisers_keep_their_own_eps(toy: Toy) -> None:
    optimizer = make_optimizer(attach(toy(), adapter_config(RECIPE)), dataclasses.replace(RECIPE, opt="adabelief"))
    assert {group["eps"] for group in optimizer.param_groups} == {1e-16}


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw(toy: Toy) -> None:
    trainer = make_trainer(toy, opt="muon", epochs=1, experts=4)
    trainer.fit(lambda trainer: None)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    by_muon = {names[id(p)] for p, state in trainer.optimizer.state.items() if state["use_muon"]}
    adapter = "blocks.0.adapter"
    # The biases of four experts and the head of three classes are not among them.
    assert by_muon == {f"{adapter}.down.weight", f"{adapter}.up.weight"}


def gradients_of(toy: Toy, opt: str) -> list[Tensor]:
    """The gradients of the first step; with two blocks they pass through attention."""
    trainer = make_trainer(toy, depth=2, opt=opt, dropout=0.2, epochs=1)
    seen: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.extend(p.grad.detach().clone() for group in optimizer.param_groups for p in group["params"])

    trainer.optimizer.register_step_pre_hook(note)
    trainer.fit(lambda trainer: None)
    return seen


def test_adahessian_gets_the_gradients_of_others(toy: Toy) -> None:
    for one, other in zip(gradients_of(toy, "adahessian"), gradients_of(toy, "adamw"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_adahessian_leaves_no_graph_behind(toy: Toy) -> None:
    trainer = make_trainer(toy, opt="adahessian", epochs=1)
    trainer.fit(lambda trainer: None)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adan2", r"^unknown optimiser 'adan2'; did you mean adan or "),
        ("AdamP", r"^unknown optimiser 'AdamP'; did you mean adamp\?$"),
        ("bnbadamw8bit", r"^--opt bnbadamw8bit cannot be used here \(.+\): choose another, such as adamw$"),
        ("fusedlamb", r"^--opt fusedlamb cannot be used here \(.+\): choose another, such as adamw$"),
    ],
)
def test_an_optimiser_that_is_not_here_is_one_line(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_optimiser(dataclasses.replace(RECIPE, opt=name), ExecutionOptions())


def test_another_optimiser_is_asked_for_a_rate_of_its_own() -> None:
    sgd = dataclasses.replace(RECIPE, opt="sgd")
    (said,) = optimiser_remarks(sgd, {"opt": "sgd"})
    assert said == "--opt sgd takes the learning rate 0.001, which was chosen for adamw: try others by --lr"
    assert optimiser_remarks(sgd, {"opt": "sgd", "lr": 0.001}) == optimiser_remarks(RECIPE, {}) == []


@pytest.mark.parametrize(
    ("changes", "execution", "text"),
    [
        ({"clip_grad": 1.0}, {}, "--clip-grad 1: "),
        ({}, {"accumulate": 2}, "--accumulate 2: "),
        ({}, {"compile": True}, "--compile: "),
    ],
)
def test_what_second_derivatives_exclude_is_named(
    changes: dict[str, Any], execution: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^--opt adahessian excludes {text}"):
        check_optimiser(dataclasses.replace(RECIPE, opt="adahessian", **changes), ExecutionOptions(**execution))
    check_optimiser(dataclasses.replace(RECIPE, **changes), ExecutionOptions(**execution))


def test_second_derivatives_belong_to_one_process() -> None:
    recipe = dataclasses.replace(RECIPE, opt="adahessian")
    check_optimiser(recipe, ExecutionOptions())
    with pytest.raises(
        ConfigError, match=r"^--opt adahessian excludes 2 processes: each would have second derivatives"
    ):
        check_optimiser(recipe, ExecutionOptions(), processes=2)


def rates(steps: int, **changes: Any) -> list[float]:
    """The rate of every step of a schedule, as a share of the peak, without validation."""
    recipe = dataclasses.replace(RECIPE, **{"lr": 1.0, "warmup_epochs": 0.0} | changes)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule, found = Schedule(optimizer, recipe, steps), []
    for epoch in range(recipe.epochs):
        for step in range(steps):
            schedule.before_step(epoch, step)
            found.append(optimizer.param_groups[0]["lr"])
        schedule.after_epoch({"epoch": epoch + 1, "validation_accuracy": 0.5, "validation_loss": 1.0})
    return found


FALLING = [1 - math.sqrt(k / 4) for k in range(1, 4)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0] * 20),
        ("step", [1.0] * 6 + [0.1] * 6 + [0.01] * 6 + [0.001] * 2),
        ("multistep", [1.0] * 5 + [0.1] * 6 + [0.01] * 6 + [0.001] * 3),
        ("poly", [1 - k / 20 for k in range(20)]),
        ("wsd", [1.0] * 17 + FALLING),
        ("plateau", [1.0] * 6 + [0.1] * 4 + [0.01] * 4 + [0.001] * 4 + [0.0001] * 2),
    ],
)
def test_schedules_are_as_long_as_the_run(name: str, expected: list[float]) -> None:
    assert rates(2, sched=name, epochs=10) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_ends_below_its_peak_and_suits_the_shortest_run(name: str) -> None:
    assert rates(1, sched=name, epochs=1, warmup_epochs=2.0)[0] > 0
    warm = rates(4, sched=name, epochs=8, warmup_epochs=2.0)
    assert warm[0] == pytest.approx(0.01)
    assert max(warm) == pytest.approx(1.0, rel=0.05) or name in ("cosine", "tanh", "poly", "rsqrt")
    assert name == "constant" or warm[-1] < max(warm)


@pytest.mark.parametrize("recipe", ["ours", "reference"])
def test_the_cosine_is_that_of_before_to_the_bit(recipe: Any) -> None:
    steps, epochs, lr, per_epoch = 7, 9, 5e-3, recipe == "reference"
    given = rates(steps, recipe=recipe, epochs=epochs, lr=lr, warmup_epochs=10.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    rate, warmup = (1 if per_epoch else steps), epochs / 4
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs * rate,
        warmup_t=math.ceil(warmup) if per_epoch else int(warmup * steps),
        warmup_lr_init=0.0 if per_epoch else lr * 1e-2,
        t_in_epochs=False,
    )
    expected = []
    for epoch in range(epochs):
        for step in range(steps):
            schedule.step_update(epoch * rate + step * rate // steps)
            expected.append(optimizer.param_groups[0]["lr"])
    assert given == expected


@pytest.mark.parametrize("select", ["accuracy", "loss"])
def test_a_plateau_goes_by_what_selects(select: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    recipe = dataclasses.replace(RECIPE, sched="plateau", select=select, warmup_epochs=0.0, lr=1.0)
    schedule, found = Schedule(optimizer, recipe, 1), []
    for epoch in range(1, 7):
        # The loss falls by 1 %, the accuracy stays.
        schedule.after_epoch({"epoch": epoch, "validation_accuracy": 0.5, "validation_loss": 0.99**epoch})
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([1.0] * 6 if select == "loss" else [1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_equals_an_unbroken_one_by_every_schedule(toy: Toy, tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"sched": name, "opt": "sgd", "epochs": 6, "lr": 1e-6}
    unbroken = make_trainer(toy, **changes)
    unbroken.fit(lambda trainer: None)
    assert_same_run(unbroken, broken_and_resumed(toy, tmp_path / "checkpoint.pt", 4, **changes))
