"""With adapters in the last blocks alone, the tokens before them are computed once."""

from typing import Any

import pytest
import torch

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig, Style
from tests.support import eva, swin
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import normalise
from training.devices import Computing
from training.entry import Entry, cut
from training.loop import Trainer, logits_of, predict
from training.recipe import Recipe, adapter_config

IMAGES, HELD_OUT = random_images(20, 3), random_images(9, 3, seed=1)

FP32 = torch.autocast("cpu", torch.bfloat16, enabled=False)

DEPTH = {"depth": 4, "num_classes": 3}


def adapted(model: Transformer, **settings: Any) -> Transformer:
    attach(model, AdapterConfig(bottleneck=4, **settings))
    perturb(model)
    return model.eval()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ({"reg_tokens": 2, "dynamic_img_size": True}, {"blocks": 1}),
        ({"pre_norm": True, "no_embed_class": True}, {"blocks": 3}),
        ({"class_token": False, "global_pool": "avg"}, {"blocks": 4}),
        ({}, {"blocks": 2, "style": "low-rank", "targets": ("q", "fc2")}),
        ({}, {"blocks": 2, "style": "houlsby", "scale": 1.0}),
    ],
    ids=["registers", "pre-norm", "all blocks", "low-rank", "sequential"],
)
def test_both_parts_of_a_cut_vit_give_its_logits_to_the_bit(
    toy: Toy, shape: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = adapted(toy(**DEPTH, **shape), **settings)
    entry = Entry.before_adapters(model, PREPROCESS)
    with torch.no_grad():
        expected = model(normalise(IMAGES.pixels, PREPROCESS))
        assert torch.equal(entry.forward(entry.prepare(IMAGES.pixels)), expected)


def test_a_swin_is_cut_within_a_stage() -> None:
    model = adapted(load_backbone(swin.NAME, Weights("random"), classes=3), blocks=1)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    entry = Entry.before_adapters(model, PREPROCESS)
    with torch.no_grad():
        assert torch.equal(entry.forward(entry.prepare(pixels)), model(normalise(pixels, PREPROCESS)))
    assert entry.prepare(pixels).shape == (4, 8, 8, 32)


@pytest.mark.parametrize("style", ["parallel", "houlsby"])
def test_a_dinov3_is_cut_with_the_positions_of_its_patches(style: Style) -> None:
    model = load_backbone(eva.NAME, Weights("random"), classes=3, depth=4)
    model = adapted(model, blocks=2, style=style, scale=1.0)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    entry = Entry.before_adapters(model, PREPROCESS)
    with torch.no_grad():
        assert torch.equal(entry.forward(entry.prepare(pixels)), model(normalise(pixels, PREPROCESS)))
    assert entry.prepare(pixels).shape == (4, 21, 32)


def trainer(toy: Toy, precision: str = "fp32", **changes: Any) -> Trainer:
    recipe = Recipe(
        "toy", **{"bottleneck": 4, "experts": 3, "epochs": 3, "batch_size": 8, "lr": 1e-2, "adapt_blocks": 2} | changes
    )
    torch.manual_seed(0)
    model = attach(toy(**DEPTH), adapter_config(recipe))
    return Trainer(model, IMAGES, HELD_OUT, PREPROCESS, recipe, seed=0, computing=Computing(precision=precision))


def test_tokens_are_computed_once_for_all_epochs(toy: Toy) -> None:
    made = trainer(toy)
    seen = {0: 0, 1: 0, 2: 0, 3: 0}
    for i in seen:
        made.model.get_submodule(f"blocks.{i}").register_forward_hook(lambda *_, i=i: seen.update({i: seen[i] + 1}))
    made.fit(lambda trainer: None)
    # In each epoch, three steps and one batch of validation.
    assert seen == {0: 0, 1: 0, 2: 12, 3: 12}


def test_cached_and_computed_anew_and_whole_give_the_same_run(toy: Toy) -> None:
    cached, anew, whole = (trainer(toy) for _ in range(3))
    anew.entry, whole.entry = Entry.before_adapters(anew.model, PREPROCESS), Entry.whole(whole.model, PREPROCESS)
    for each in (anew, whole):
        each.step.entry = each.entry
        each.train, each.validation = IMAGES, HELD_OUT
    for each in (cached, anew, whole):
        each.fit(lambda trainer: None)
    for other in (anew, whole):
        for name, value in task_state(cached.model).items():
            torch.testing.assert_close(value, task_state(other.model)[name], rtol=0, atol=1e-5, msg=name)
        losses = [row["validation_loss"] for row in cached.state.history]
        assert [row["validation_loss"] for row in other.state.history] == pytest.approx(losses, abs=1e-5)


def test_training_in_bf16_caches_tokens_of_bf16_and_validation_those_of_fp32(toy: Toy) -> None:
    made = trainer(toy, precision="bf16")
    exact = Entry.before_adapters(made.model, PREPROCESS).prepare(IMAGES.pixels)
    (cached,) = made.train.settled().split(20)
    assert not torch.equal(cached, exact)
    torch.testing.assert_close(cached, exact, rtol=0.1, atol=0.1)
    logits = logits_of(made.model, made.entry, made.validation.settled(), "cpu", torch.arange(len(HELD_OUT)))
    assert torch.equal(logits, predict(made.model, HELD_OUT, PREPROCESS, "cpu"))


def test_the_size_of_the_cache_is_said_and_bounded(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted(toy(**DEPTH), blocks=1)
    needed = (20 + 9) * 5 * 12 * 4
    _, tokens, _ = cut(model, IMAGES, HELD_OUT, PREPROCESS, "cpu", FP32, limit=needed)
    assert next(tokens.settled().split(20)).shape == (20, 5, 12)
    _, train, validation = cut(model, IMAGES, HELD_OUT, PREPROCESS, "cpu", FP32, limit=needed - 1)
    assert train is IMAGES
    assert validation is HELD_OUT
    kept, anew = capsys.readouterr().out.splitlines()
    assert kept == "the tokens before the first adapter are computed once and kept in memory: 0.0 MiB"
    assert anew == "the tokens before the first adapter would take 0.0 MiB: they are computed anew in every step"


def test_dropout_in_the_backbone_leaves_nothing_to_cache(toy: Toy) -> None:
    assert trainer(toy, recipe="reference").train is IMAGES
