import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from mosa_deploy.adapters.attach import attach, split_layers, task_state
from mosa_deploy.adapters.loss import pass_losses
from mosa_deploy.adapters.merge import merge
from mosa_deploy.errors import TrainingError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import whole
from training.devices import Computing
from training.loop import Trainer, predict
from training.recipe import Recipe, adapter_config

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.0, epochs=3, batch_size=8, lr=1e-2)


def two_passes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(12, 4, generator=generator, dtype=torch.float32), torch.arange(6) % 4


def make_trainer(toy: Toy, **changes: Any) -> Trainer:
    """A trainer of the toy with perturbed adapters, so that the experts differ."""
    recipe = dataclasses.replace(RECIPE, **changes)
    model = attach(toy(num_classes=3), adapter_config(recipe), seed=0)
    perturb(model)
    return Trainer(model, random_images(20, 3), random_images(9, 3, seed=1), PREPROCESS, recipe, seed=0)


def test_task_loss_is_cross_entropy_and_half_the_two_divergences() -> None:
    logits, labels = two_passes()
    first, second = np.split(softmax(logits.double().numpy(), axis=1), 2)
    cross_entropy = -log_softmax(logits[:6].double().numpy(), axis=1)[np.arange(6), labels].mean()
    consistency = (rel_entr(first, second).sum(1).mean() + rel_entr(second, first).sum(1).mean()) / 2
    given = pass_losses(logits, labels, passes=2)
    np.testing.assert_allclose([float(part) for part in given], [cross_entropy, consistency], rtol=1e-5)


def test_gradient_of_the_task_loss_stops_where_the_paper_says() -> None:
    logits, labels = two_passes()
    logits.requires_grad_()
    sum(pass_losses(logits, labels, passes=2), start=torch.zeros(())).backward()
    first, second = np.split(softmax(logits.detach().double().numpy(), axis=1), 2)
    # d KL(sg q || softmax(z)) / dz = softmax(z) - q, and nothing flows into q.
    expected = np.concatenate([first - np.eye(4)[labels] + (first - second) / 2, (second - first) / 2]) / 6
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_one_pass_has_no_consistency() -> None:
    logits, labels = two_passes()
    cross_entropy, consistency = pass_losses(logits[:6], labels, passes=1)
    expected = -log_softmax(logits[:6].double().numpy(), axis=1)[np.arange(6), labels].mean()
    assert float(cross_entropy) == pytest.approx(expected, rel=1e-5)
    assert float(consistency) == 0


def test_step_sends_both_passes_as_one_batch_and_the_first_alone_meets_the_labels(toy: Toy) -> None:
    trainer = make_trainer(toy)
    trainer.model.train()
    seen: list[Tensor] = []
    trainer.model.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output.detach())))
    images = random_images(8, 3)
    cross_entropy, consistency = trainer.step(whole(images))[0].tolist()
    assert len(seen) == 2
    inputs, logits = seen
    np.testing.assert_array_equal(inputs[:8], inputs[8:])
    np.testing.assert_allclose(inputs[:8], PREPROCESS.normalise(images.pixels.numpy()), atol=1e-6)
    chosen = -log_softmax(logits.numpy(), axis=1)[np.arange(16), images.labels.repeat(2)]
    assert cross_entropy == pytest.approx(chosen[:8].mean(), rel=1e-5)
    assert cross_entropy != pytest.approx(chosen[8:].mean(), rel=1e-3)
    first, second = np.split(softmax(logits.double().numpy(), axis=1), 2)
    expected = (rel_entr(first, second).sum() + rel_entr(second, first).sum()) / 16
    assert consistency == pytest.approx(expected, rel=1e-3)


def test_consistency_weight_multiplies_its_gradient(toy: Toy) -> None:
    images, moved = random_images(8, 3), {}
    for weight in (0.0, 1.0, 3.0):
        trainer = make_trainer(toy, consistency=weight)
        trainer.model.train()
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0
        trainer.step(whole(images))
        gradient = split_layers(trainer.model)[0].weight.grad
        assert gradient is not None
        moved[weight] = gradient.double().numpy()
    np.testing.assert_allclose(moved[3.0] - moved[0.0], 3 * (moved[1.0] - moved[0.0]), atol=1e-6)
    assert not np.allclose(moved[1.0], moved[0.0])


def test_last_epochs_train_the_merged_adapter_densely(toy: Toy) -> None:
    trainer = make_trainer(toy, epochs=3, dense_epochs=2)
    dense: list[bool] = []
    trainer.model.register_forward_hook(
        lambda model, *_: dense.append(split_layers(model)[0].dense) if model.training else None
    )
    trainer.fit(lambda trainer: None)
    assert dense == [False] * 3 + [True] * 6


def test_bf16_steps_differ_from_fp32_and_validation_does_not(toy: Toy) -> None:
    images, losses = random_images(8, 3), {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(toy)
        trainer = Trainer(
            trainer.model, trainer.train, trainer.validation, PREPROCESS, trainer.recipe, 0, Computing("cpu", precision)
        )
        logits = predict(trainer.model, images, PREPROCESS, "cpu")
        trainer.model.train()
        losses[precision] = (logits, trainer.step(whole(images))[0])
    assert torch.equal(losses["fp32"][0], losses["bf16"][0])
    assert not torch.equal(losses["fp32"][1], losses["bf16"][1])
    np.testing.assert_allclose(losses["fp32"][1], losses["bf16"][1], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("passes", "tolerance"), [(1, 0.0), (2, 1e-5)])
def test_one_expert_is_the_dense_adapter(toy: Toy, passes: int, tolerance: float) -> None:
    """Bit for bit with one pass; two draws are two matrix products, whose gradients add up in another order."""
    recipe = dataclasses.replace(RECIPE, experts=1, passes=passes, dropout=0.2)
    tuned = []
    for split in (True, False):
        model = attach(toy(num_classes=3), adapter_config(recipe), seed=0, split=split)
        trainer = Trainer(model, random_images(20, 3), random_images(9, 3, seed=1), PREPROCESS, recipe, 0)
        trainer.fit(lambda trainer: None)
        tuned.append(task_state(merge(model)))
    assert tuned[0].keys() == tuned[1].keys()
    for name, value in tuned[0].items():
        np.testing.assert_allclose(value, tuned[1][name], rtol=0, atol=tolerance, err_msg=name)


def exhaust_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def exhaust_cpu() -> None:
    torch.empty(10**15)


@pytest.mark.parametrize("exhaust", [exhaust_gpu, exhaust_cpu])
def test_out_of_memory_names_what_leaves_the_result_as_it_is(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, exhaust: Callable[[], None]
) -> None:
    trainer = make_trainer(toy)
    trainer.fit(lambda trainer: setattr(trainer.state, "epoch", trainer.recipe.epochs))

    trainer.state.epoch = 0
    monkeypatch.setattr(trainer.model, "forward_features", lambda *_, **__: exhaust())
    with pytest.raises(TrainingError, match=r"^cpu is out of memory: --resume --accumulate 2 computes the same batch"):
        trainer.fit(lambda trainer: None)
    assert len(trainer.state.history) == 1


def test_other_errors_of_torch_are_not_taken_for_it(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy)
    monkeypatch.setattr(trainer.model, "forward_features", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.fit(lambda trainer: None)


def test_step_moves_adapters_and_head_and_nothing_else(toy: Toy) -> None:
    trainer = make_trainer(toy)
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    images = random_images(8, 3)
    trainer.step(whole(images))
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    learnt = {name for name in task_state(trainer.model) if not name.endswith((".base", ".owner"))}
    assert moved == learnt


def test_biases_of_experts_too_have_no_weight_decay(toy: Toy) -> None:
    trainer = make_trainer(toy)
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    learnt = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(learnt) == len(decay)
    for name, parameter in learnt.items():
        matrix = name.endswith(("down.weight", "up.weight", "head.weight"))
        assert decay[id(parameter)] == (RECIPE.weight_decay if matrix else 0)


def test_predict_gives_the_expectation_over_the_experts(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loop.PREDICTED", 2)
    trainer = make_trainer(toy, dropout=0.5, share="none")
    dense = attach(toy(num_classes=3), adapter_config(trainer.recipe), split=False)
    state = dict(trainer.model.state_dict())
    for name, layer in trainer.model.named_modules():
        if layer in split_layers(trainer.model):
            owned = [state[f"{name}.weight"] * (state[f"{name}.owner"] == k) for k in range(3)]
            state[f"{name}.weight"] = sum((state[f"{name}.base"] + part for part in owned), start=torch.zeros(())) / 3
            state[f"{name}.bias"] = state[f"{name}.bias"].mean(0)
    dense.load_state_dict({name: state[name] for name in dense.state_dict()})
    images = random_images(5, 3)
    given = predict(trainer.model.train(), images, PREPROCESS, "cpu")
    with torch.no_grad():
        expected = dense.eval()(torch.from_numpy(PREPROCESS.normalise(images.pixels.numpy())))
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_fit_leaves_the_epoch_that_validation_chose(toy: Toy) -> None:
    trainer = make_trainer(toy)
    states: list[dict[str, Tensor]] = []

    def finished(trainer: Trainer) -> None:
        states.append({name: value.clone() for name, value in task_state(trainer.model).items()})
        trainer.state.best = (2.0, 0.0) if trainer.state.epoch == 2 else (-1.0, 0.0)

    trainer.fit(finished)
    left = task_state(trainer.model)
    assert len(states) == 3
    assert all(torch.equal(left[name], states[1][name]) for name in left)
    assert not torch.equal(left["head.weight"], states[2]["head.weight"])


def test_equal_accuracy_is_decided_by_the_loss(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy)
    sharpness = iter((1.0, 3.0, 2.0))
    monkeypatch.setattr(
        "training.loop.logits_of", lambda *_: next(sharpness) * torch.eye(3)[trainer.validation.settled().labels]
    )
    trainer.fit(lambda trainer: None)
    losses = [row["validation_loss"] for row in trainer.state.history]
    assert [row["validation_accuracy"] for row in trainer.state.history] == [1, 1, 1]
    assert trainer.state.best == (1.0, -min(losses)) == (1.0, -losses[1])


def test_the_loss_may_select(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy, select="loss")
    answers = iter((3.0 * torch.eye(3), 0.2 * torch.eye(3), -0.1 * torch.eye(3)))
    monkeypatch.setattr("training.loop.logits_of", lambda *_: next(answers)[trainer.validation.labels])
    trainer.fit(lambda trainer: None)
    assert trainer.state.best == (-trainer.state.history[0]["validation_loss"], 1.0)


def test_a_balanced_loss_weighs_classes_by_their_training_images(toy: Toy) -> None:
    plain, balanced = (make_trainer(toy, balance=balance) for balance in ("none", "loss"))
    counts = balanced.train.labels.bincount(minlength=3).numpy()
    assert balanced.step.class_weights is not None
    np.testing.assert_allclose(balanced.step.class_weights.numpy(), counts.sum() / (3 * counts), rtol=1e-6)
    few = whole(dataclasses.replace(random_images(4, 3), labels=torch.tensor([0, 0, 0, 2])))
    losses = [trainer.step(few)[0] for trainer in (plain, balanced)]
    assert float(losses[0][0]) != pytest.approx(float(losses[1][0]), rel=1e-4)


def test_learning_rate_warms_up_and_falls_to_almost_nothing(toy: Toy) -> None:
    trainer = make_trainer(toy, epochs=8, warmup_epochs=2.0, lr=1e-3)
    trainer.fit(lambda trainer: None)
    rates = [row["lr"] for row in trainer.state.history]
    warm = 6
    assert trainer.steps == 3
    # The last step of epoch n is step 3n - 1; the cosine counts from the start, as timm's does without a prefix.
    cosine = [5e-4 * (1 + np.cos(np.pi * (3 * n - 1) / 24)) for n in range(3, 9)]
    linear = [1e-5 + (3 * n - 1) * (1e-3 - 1e-5) / warm for n in (1, 2)]
    np.testing.assert_allclose(rates, linear + cosine, rtol=1e-6)


def test_the_average_of_the_weights_is_what_is_selected(toy: Toy) -> None:
    trainer = make_trainer(toy, ema=0.75, epochs=2)
    name = "head.weight"
    expected, steps = task_state(trainer.model)[name].double().numpy().copy(), []

    def follow(*_: Any) -> None:
        steps.append(task_state(trainer.model)[name].double().numpy().copy())

    trainer.optimizer.register_step_post_hook(follow)
    averages = []

    def finished(trainer: Trainer) -> None:
        averages.append(len(steps))

    trainer.fit(finished)
    best = max(
        range(2),
        key=lambda i: (trainer.state.history[i]["validation_accuracy"], -trainer.state.history[i]["validation_loss"]),
    )
    for n, step in enumerate(steps[: averages[best]]):
        decay = min(0.75, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * step
    np.testing.assert_allclose(task_state(trainer.model)[name].double().numpy(), expected, rtol=0, atol=1e-6)
    assert not np.allclose(expected, steps[averages[best] - 1], atol=1e-4)


def test_the_time_left_is_that_of_the_epochs_that_are_not_finished(toy: Toy) -> None:
    trainer = make_trainer(toy, epochs=5)
    trainer.state.epoch = 2
    trainer.state.history = [{"images_per_second": 0.5}]
    assert trainer.time_left() == "02:00"  # 3 epochs of 20 images
