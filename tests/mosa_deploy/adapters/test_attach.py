import copy
import functools
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import RmsNorm, SwiGLU
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from mosa_deploy.adapters.attach import (
    AdaptedBlock,
    adapters,
    attach,
    freeze,
    load_task_state,
    reseed,
    set_passes,
    split_layers,
    task_state,
)
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, AdapterConfig, BackboneMethod, Style, Target
from mosa_deploy.errors import BackboneError, ConfigError
from tests.support.models import perturb

Toy = Callable[..., VisionTransformer]

CONFIG = AdapterConfig(bottleneck=4, experts=3, share="none")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("training", [False, True])
def test_attaching_leaves_the_logits_bit_identical(toy: Toy, training: bool) -> None:
    model = toy().train(training)
    before = model(images())
    attach(model, CONFIG).train(training)
    assert len(adapters(model)) == 2
    assert torch.equal(model(images()), before)


def test_attaching_twice_is_refused(toy: Toy) -> None:
    model = attach(toy(), CONFIG)
    with pytest.raises(BackboneError, match="has adapters already: start from a plain backbone"):
        attach(model, CONFIG)
    assert len(adapters(model)) == 2


@pytest.mark.parametrize(
    ("kwargs", "fault"),
    [
        ({"block_fn": ResPostBlock}, "ResPostBlock is not timm's pre-norm Block"),
        ({"mlp_layer": SwiGLU}, "mlp is SwiGLU, not Mlp"),
        ({"scale_mlp_norm": True}, "mlp has an inner norm"),
        ({"norm_layer": RmsNorm}, "norm2 is RmsNorm, not LayerNorm"),
        ({"proj_bias": False}, "mlp has no bias"),
    ],
)
def test_blocks_that_cannot_fold_are_refused_by_name(toy: Toy, kwargs: dict[str, object], fault: str) -> None:
    model = toy(**kwargs)
    with pytest.raises(
        BackboneError,
        match=f"blocks.0: {fault}; blocks.1: {fault}; choose a plain pre-norm ViT, such as .*, or a Swin$",
    ):
        attach(model, CONFIG)
    assert not adapters(model)


def test_a_model_that_is_no_vit_is_refused_by_its_class() -> None:
    with pytest.raises(BackboneError, match=r"^this model is a ResNet, not a plain ViT or Swin: choose a plain"):
        attach(timm.create_model("test_resnet"), CONFIG)


def test_freezing_leaves_adapters_and_head_to_be_trained(toy: Toy) -> None:
    model = attach(toy(), CONFIG)
    freeze(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = ("norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")
    expected = {f"blocks.{i}.adapter.{tensor}" for i in range(2) for tensor in tensors}
    assert trained == expected | {"head.weight", "head.bias"}


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_what_a_method_tunes_of_the_backbone_is_what_its_task_owns(toy: Toy, method: BackboneMethod) -> None:
    model = toy(init_values=1.0)
    freeze(model, method)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == task_state(model, method).keys()
    biases = {name for name in trained if name.endswith(".bias")}
    assert len(biases) == 15
    assert trained - biases == ({"head.weight"} if method == "bitfit" else model.state_dict().keys() - biases)


def test_biases_that_do_not_fit_are_named(toy: Toy) -> None:
    model = toy()
    state = task_state(toy(qkv_bias=False), "bitfit") | {"norm.weight": torch.ones(12)}
    with pytest.raises(BackboneError) as caught:
        load_task_state(model, state, "bitfit")
    assert str(caught.value) == (
        "the task's tensors do not fit the model: missing blocks.0.attn.qkv.bias; missing blocks.1.attn.qkv.bias;"
        " unexpected norm.weight"
    )


def test_task_state_holds_adapters_and_head_with_the_experts_in_order(toy: Toy) -> None:
    state = task_state(attach(toy(), AdapterConfig(bottleneck=4)))
    tensors = ["down.bias", "down.weight", "norm.bias", "norm.weight", "up.base", "up.bias", "up.owner", "up.weight"]
    names = [f"blocks.{i}.adapter.{tensor}" for i in range(2) for tensor in tensors]
    assert list(state) == [*names, "head.bias", "head.weight"]


def test_task_state_makes_another_model_answer_the_same(toy: Toy) -> None:
    tuned, other = attach(toy(), CONFIG, seed=1), attach(toy(), CONFIG, seed=2)
    perturb(tuned)
    assert not torch.allclose(other(images()), tuned.eval()(images()))
    load_task_state(other, task_state(tuned))
    assert torch.equal(other.eval()(images()), tuned(images()))


def test_all_faults_of_a_task_state_are_listed_at_once(toy: Toy) -> None:
    model = attach(toy(), CONFIG)
    before = copy.deepcopy(task_state(model))
    state = {**before, "head.weight": torch.zeros(7, 12), "head.extra": torch.zeros(1)}
    del state["blocks.1.adapter.norm.bias"]
    with pytest.raises(BackboneError) as caught:
        load_task_state(model, state)
    faults = r"head.weight is (7, 12), not (5, 12); missing blocks.1.adapter.norm.bias; unexpected head.extra"
    assert str(caught.value) == f"the task's tensors do not fit the model: {faults}"
    assert torch.equal(task_state(model)["head.weight"], before["head.weight"])


def test_reseeding_repeats_the_draws_of_an_epoch_and_changes_those_of_the_next(toy: Toy) -> None:
    model = attach(toy(), CONFIG).train()
    perturb(model)
    set_passes(model, 16)
    outputs = []
    for epoch in (1, 1, 2):
        reseed(model, 5, epoch)
        torch.manual_seed(0)
        outputs.append(model(images(16)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def test_layers_draw_independently_of_each_other(toy: Toy) -> None:
    model = attach(toy(depth=4), CONFIG)
    reseed(model, 0, 0)
    draws = [torch.randint(1000, (8,), generator=layer.generator).tolist() for layer in split_layers(model)]
    assert len({tuple(drawn) for drawn in draws}) == 8


def test_adapted_block_is_timms_block_plus_the_adapter_under_a_mask_too(toy: Toy) -> None:
    plain = toy(init_values=0.5).blocks[1]
    adapted = attach(toy(init_values=0.5), CONFIG).eval().blocks[1]
    assert isinstance(plain, Block)
    assert isinstance(adapted, AdaptedBlock)
    for parameter in adapted.adapter.parameters():
        nn.init.normal_(parameter)
    x, mask = torch.randn(2, 5, 12), torch.randn(5, 5)
    h = x + plain.ls1(plain.attn(plain.norm1(x), attn_mask=mask))
    torch.testing.assert_close(adapted(x, attn_mask=mask), plain(x, attn_mask=mask) + adapted.adapter(h))
    assert not torch.allclose(adapted(x, attn_mask=mask), adapted(x))


def test_causal_attention_reaches_the_block(toy: Toy) -> None:
    plain, adapted = toy().blocks[0], attach(toy(), CONFIG).eval().blocks[0]
    x = torch.randn(2, 5, 12)
    assert torch.equal(adapted(x, is_causal=True), plain(x, is_causal=True))
    assert not torch.allclose(adapted(x, is_causal=True), adapted(x))


def test_adapters_take_the_blocks_own_activation_and_eps(toy: Toy) -> None:
    model = attach(toy(act_layer=nn.SiLU, norm_layer=functools.partial(nn.LayerNorm, eps=0.02)), CONFIG)
    for adapter in adapters(model):
        assert isinstance(adapter, ParallelAdapter)
        assert isinstance(adapter.act, nn.SiLU)
        assert adapter.norm.eps == 0.02


def test_seed_and_block_decide_the_start(toy: Toy) -> None:
    first, again, other = (attach(toy(), CONFIG, seed=seed) for seed in (1, 1, 2))
    state = {name: value for name, value in task_state(first).items() if name.endswith(("down.base", "owner"))}
    assert len(state) == 6
    for name, value in state.items():
        assert torch.equal(value, task_state(again)[name])
        assert not torch.equal(value, task_state(other)[name])
    assert not torch.equal(state["blocks.0.adapter.up.owner"], state["blocks.1.adapter.up.owner"])


def test_fewer_than_one_pass_is_refused(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"^passes 0: at least 1$"):
        set_passes(attach(toy(), CONFIG), 0)


@pytest.mark.parametrize("style", ["parallel", "low-rank", "houlsby"])
def test_only_the_last_blocks_get_adapters(toy: Toy, style: Style) -> None:
    targets: tuple[Target, ...] = ("q",) if style == "low-rank" else ()
    config = AdapterConfig(bottleneck=4, style=style, scale=1.0, targets=targets, blocks=1)
    model = attach(toy(depth=3), config)
    assert {name.split(".")[1] for name in task_state(model) if ".adapter." in name} == {"2"}


def test_more_blocks_to_adapt_than_there_are_is_refused(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"^--adapt-blocks 4: the backbone has 3 blocks$"):
        attach(toy(depth=3), AdapterConfig(bottleneck=4, blocks=4))
