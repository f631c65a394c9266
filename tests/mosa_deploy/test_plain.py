from collections.abc import Callable

import pytest
from timm.layers import SwiGLU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mosa_deploy.errors import BackboneError
from mosa_deploy.plain import check_plain, feed_forward

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
    assert check_plain(model) is model


def test_all_faults_of_all_blocks_are_named_at_once(toy: Toy) -> None:
    model = toy(depth=3)
    block_of(model, 1).mlp = SwiGLU(12)
    block_of(model, 2).norm2 = nn.LayerNorm(12, elementwise_affine=False)
    block_of(model, 2).add_module("ls2", nn.Linear(12, 12))
    faults = "blocks.1: mlp is SwiGLU, not Mlp; blocks.2: norm2 has no affine; blocks.2: ls2 is Linear;"
    with pytest.raises(BackboneError, match=f"cannot be folded exactly: {faults} choose a plain"):
        check_plain(model)


def test_an_mlp_of_convolutions_is_refused(toy: Toy) -> None:
    model = toy()
    mlp = block_of(model, 0).mlp
    assert isinstance(mlp, nn.Module)
    mlp.fc1 = nn.Conv2d(12, 48, 1)
    with pytest.raises(BackboneError, match=r"blocks\.0: mlp is not made of linear layers;"):
        check_plain(model)


def test_feed_forward_names_the_blocks_own_parts(toy: Toy) -> None:
    scaled, bare = block_of(toy(init_values=0.1), 0), block_of(toy(), 0)
    part = feed_forward(scaled)
    assert part.norm is scaled.norm2
    assert (part.fc1, part.act, part.fc2) == (scaled.mlp.fc1, scaled.mlp.act, scaled.mlp.fc2)
    assert part.layer_scale is scaled.ls2
    assert feed_forward(bare).layer_scale is None
