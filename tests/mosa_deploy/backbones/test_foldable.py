from collections.abc import Callable

import pytest
from timm.layers import GELUTanh, LayerNorm2d, LayerScale, QuickGELU, SimpleNorm, SwiGLU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mosa_deploy.backbones.foldable import check_foldable, feed_forward
from mosa_deploy.errors import BackboneError

Toy = Callable[..., VisionTransformer]


def block_of(model: VisionTransformer, i: int) -> Block:
    block = model.blocks[i]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize(
    "kwargs", [{}, {"init_values": 0.1}, {"qk_norm": True}, {"reg_tokens": 2}, {"qkv_bias": False}]
)
def test_a_plain_vit_passes_and_is_returned_itself(toy: Toy, kwargs: dict[str, object]) -> None:
    model = toy(**kwargs)
    assert check_foldable(model) is model


def test_all_faults_of_all_blocks_are_named_at_once(toy: Toy) -> None:
    model = toy(depth=3)
    block_of(model, 1).mlp = SwiGLU(12)
    block_of(model, 2).norm2 = nn.LayerNorm(12, elementwise_affine=False)
    block_of(model, 2).add_module("ls2", nn.Linear(12, 12))
    faults = "blocks.1: mlp is SwiGLU, not Mlp; blocks.2: norm2 has no affine; blocks.2: ls2 is Linear;"
    with pytest.raises(BackboneError, match=f"cannot be folded exactly: {faults} choose a plain"):
        check_foldable(model)


def test_a_fault_of_many_blocks_is_named_once_for_all_of_them(toy: Toy) -> None:
    model = toy(depth=6)
    for i in (0, 2, 3, 4, 5):
        block_of(model, i).mlp = SwiGLU(12)
    faults = "blocks.0: mlp is SwiGLU, not Mlp; blocks.2-5: mlp is SwiGLU, not Mlp; choose"
    with pytest.raises(BackboneError, match=f"^toy cannot be folded exactly: {faults}"):
        check_foldable(model, "toy")


class Doubled(nn.LayerNorm):
    """A LayerNorm by its class only."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice what a LayerNorm gives."""
        return 2 * super().forward(x)


class Scaled(LayerScale):
    """A LayerScale by its class only."""


@pytest.mark.parametrize(
    ("part", "module", "fault"),
    [
        ("norm2", Doubled(12), "norm2 is Doubled, not LayerNorm"),
        ("norm2", LayerNorm2d(12), "norm2 is LayerNorm2d, not LayerNorm"),
        ("norm2", SimpleNorm(12), "norm2 is SimpleNorm, not LayerNorm"),
        ("norm2", nn.LayerNorm(12, bias=False), "norm2 has no affine"),
        ("ls2", Scaled(12), "ls2 is Scaled"),
        ("mlp.act", nn.PReLU(48), r"act PReLU\(num_parameters=48\) has parameters of its own"),
        ("mlp.act", nn.Softmax(-1), r"act Softmax\(dim=-1\) does not work on each channel alone"),
        ("mlp.norm", nn.LayerNorm(48), "mlp has an inner norm"),
    ],
)
def test_a_part_that_only_resembles_the_right_one_is_refused(
    toy: Toy, part: str, module: nn.Module, fault: str
) -> None:
    model = toy()
    block_of(model, 1).set_submodule(part, module)
    with pytest.raises(BackboneError, match=f"exactly: blocks\\.1: {fault}; choose"):
        check_foldable(model)


@pytest.mark.parametrize("act", [nn.SiLU(inplace=True), nn.ReLU(inplace=True), GELUTanh(), QuickGELU(), nn.Hardswish()])
def test_any_activation_that_works_on_each_channel_alone_passes(toy: Toy, act: nn.Module) -> None:
    model = toy()
    block_of(model, 1).set_submodule("mlp.act", act)
    assert check_foldable(model) is model


def test_a_subclass_of_timms_vit_is_refused(toy: Toy) -> None:
    class Other(VisionTransformer):
        pass

    with pytest.raises(BackboneError, match=r"^this model is a Other, not a plain ViT or Swin: choose a plain"):
        check_foldable(Other(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=3))


def test_an_mlp_of_convolutions_is_refused(toy: Toy) -> None:
    model = toy()
    mlp = block_of(model, 0).mlp
    assert isinstance(mlp, nn.Module)
    mlp.fc1 = nn.Conv2d(12, 48, 1)
    with pytest.raises(BackboneError, match=r"blocks\.0: mlp is not made of linear layers;"):
        check_foldable(model)


def test_feed_forward_names_the_blocks_own_parts(toy: Toy) -> None:
    scaled, bare = block_of(toy(init_values=0.1), 0), block_of(toy(), 0)
    part = feed_forward(scaled)
    assert part.norm is scaled.norm2
    assert (part.fc1, part.act, part.fc2) == (scaled.mlp.fc1, scaled.mlp.act, scaled.mlp.fc2)
    assert part.gamma is scaled.ls2.get_parameter("gamma")
    assert feed_forward(bare).gamma is None
