"""Every kind of plain timm ViT and Swin, small and random, goes the whole way; every other kind is refused by name."""

import copy
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNormFp32
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.attach import adapters, attach, freeze, task_state
from mosa_deploy.adapters.fold import fold, widened_ratio
from mosa_deploy.adapters.merge import merge
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import Transformer, Vit, blocks_of, feed_forward, topology_of
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import BackboneError

BOTTLENECK, CLASSES = 5, 4
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}
SMALL_SWIN: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}

PLAIN: list[tuple[str, dict[str, Any]]] = [
    (embedded.NAME.partition(".")[0], {"img_size": 8}),
    ("vit_tiny_patch16_224", {"img_size": 32}),
    ("vit_small_patch16_224", {"img_size": (32, 48)}),
    ("vit_large_patch16_224", {"img_size": 32}),
    ("vit_base_patch16_224", {"img_size": 32, "global_pool": "avg"}),
    ("vit_base_patch16_224", {"img_size": 32, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("vit_base_patch16_224", {"img_size": 32, "global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2}),
    ("vit_base_patch16_224", {"img_size": 32, "pos_embed": "none"}),
    ("vit_base_patch16_224", {"img_size": 48, "dynamic_img_size": True}),
    ("vit_base_patch16_224", {"img_size": 48, "dynamic_img_size": True, "dynamic_img_pad": True}),
    ("vit_base_patch16_224", {"img_size": 32, "drop_path_rate": 0.2, "proj_drop_rate": 0.2, "pos_drop_rate": 0.2}),
    ("vit_base_patch16_gap_224", {"img_size": 32}),
    ("vit_base_patch16_224_miil", {"img_size": 32}),
    ("deit_tiny_patch16_224", {"img_size": 32}),
    ("deit3_small_patch16_224", {"img_size": 32}),
    ("vit_base_patch16_clip_224", {"img_size": 32}),
    ("vit_base_patch16_clip_quickgelu_224", {"img_size": 32}),
    ("vit_gigantic_patch14_clip_224", {"img_size": 28}),
    ("vit_base_patch16_siglip_224", {"img_size": 32}),
    ("vit_base_patch16_siglip_gap_224", {"img_size": 32}),
    ("vit_so400m_patch14_siglip_224", {"img_size": 28}),
    ("vit_giantopt_patch16_siglip_gap_256", {"img_size": 32}),
    ("vit_small_patch14_dinov2", {"img_size": 28}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    ("vit_base_patch14_reg1_tipsv2", {"img_size": 28}),
    ("vit_so150m_patch16_reg4_map_256", {"img_size": 32}),
    ("vit_dwee_patch16_reg1_gap_256", {"img_size": 32}),
    ("vit_intern300m_patch14_448", {"img_size": 28}),
    ("vit_base_patch16_radio_v3", {"img_size": 32}),
    ("flexivit_small", {"img_size": 32}),
    ("eva_large_patch14_196", {"img_size": 28}),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64}),
    ("vit_small_patch16_dinov3", {"img_size": 32, "global_pool": "token"}),
    ("vit_base_patch16_dinov3_qkvb", {"img_size": (32, 48), "global_pool": "avg"}),
    ("vit_large_patch16_dinov3", {"img_size": 48, "global_pool": "token", "dynamic_img_size": True}),
    ("vit_small_patch16_lingbot", {"img_size": 32}),
    ("vit_medium_patch16_rope_reg1_gap_256", {"img_size": 32}),
    ("vit_small_patch16_rope_ape_224", {"img_size": 32}),
    ("vit_pe_spatial_tiny_patch16_512", {"img_size": 32}),
    ("vit_pe_core_tiny_patch16_384", {"img_size": 32, "attn_pool_num_heads": 3}),
    ("eva_giant_patch14_224", {"img_size": 28}),
]

SWIN: list[tuple[str, dict[str, Any]]] = [
    ("swin_tiny_patch4_window7_224", {"patch_size": 2, "window_size": 4}),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": (32, 48), "window_size": 3, "depths": (1, 3, 2), "num_heads": (2, 2, 4)},
    ),
    ("swin_base_patch4_window12_384", {"drop_path_rate": 0.3, "proj_drop_rate": 0.2}),
    ("swin_s3_tiny_224", {"window_size": (4, 2)}),
    ("swin_small_patch4_window7_224", {"patch_size": 2, "window_size": 4, "dynamic_img_size": True}),
]
"""Windows that fill the image, that need padding, and that are larger; those of every second block are shifted."""

CASES = [(name, SMALL | kwargs) for name, kwargs in PLAIN] + [(name, SMALL_SWIN | kwargs) for name, kwargs in SWIN]

OTHER: list[tuple[str, dict[str, Any], str]] = [
    ("vit_giant_patch14_dinov2", {"depth": 3}, "blocks.0-2: mlp is GluMlp, not Mlp"),
    ("vit_giant_patch14_reg4_dinov2", SMALL, "blocks.0: mlp is GluMlp, not Mlp; blocks.1: mlp is GluMlp, not Mlp"),
    ("aimv2_large_patch14_224", SMALL, "blocks.0: mlp is SwiGLU, not Mlp"),
    ("aimv2_large_patch14_224", SMALL, "blocks.0: norm2 is RmsNorm, not LayerNorm"),
    ("beit3_base_patch16_224", SMALL, "blocks.0: mlp has an inner norm"),
    ("test_vit4", SMALL, "blocks.1: norm2 is RmsNorm, not LayerNorm"),
    ("vit_base_patch16_rpn_224", SMALL, "blocks.0: ResPostBlock is not timm's pre-norm Block"),
    ("vit_base_patch16_xp_224", SMALL, "blocks.0: ParallelScalingBlock is not timm's pre-norm Block"),
    ("vit_small_patch16_18x2_224", SMALL, "blocks.0: ParallelThingsBlock is not timm's pre-norm Block"),
    ("vit_dpwee_patch16_reg1_gap_256", SMALL, "blocks.0: DiffParallelScalingBlock is not timm's pre-norm Block"),
    ("vit_small_resnet26d_224", SMALL, "patch_embed.backbone.conv1.1 is a BatchNorm"),
    ("vit_tiny_patch16_224", SMALL | {"act_layer": nn.PReLU}, "blocks.0: act PReLU(num_parameters=1) has parameters"),
    ("vit_tiny_patch16_224", SMALL | {"act_layer": partial(nn.Softmax, dim=-1)}, "blocks.0: act Softmax(dim=-1) does"),
    ("vit_tiny_patch16_224", SMALL | {"norm_layer": LayerNormFp32}, "blocks.0: norm2 is LayerNormFp32, not LayerNorm"),
    ("vit_tiny_patch16_224", SMALL | {"proj_bias": False}, "blocks.0: mlp has no bias"),
    ("deit_tiny_distilled_patch16_224", SMALL, "is a VisionTransformerDistilled, not a plain ViT or Swin"),
    ("beit_base_patch16_224", {"depth": 2}, "is a Beit, not a plain ViT"),
    ("eva02_tiny_patch14_224", {"depth": 3}, "blocks.0-2: mlp is GluMlp, not Mlp"),
    ("eva02_base_patch14_224", {"depth": 3}, "blocks.0-2: mlp is SwiGLU, not Mlp"),
    ("vit_small_patch16_rope_mixed_224", SMALL, "rope.freqs are learned angles of positions"),
    ("vit_relpos_small_patch16_224", SMALL, "is a VisionTransformerRelPos, not a plain ViT"),
    ("samvit_base_patch16_224", {}, "is a VisionTransformerSAM, not a plain ViT"),
    ("naflexvit_base_patch16_gap", {}, "is a NaFlexVit, not a plain ViT"),
    ("swin_tiny_patch4_window7_224", {"norm_layer": LayerNormFp32}, "layers.2.blocks.0-5: norm2 is LayerNormFp32, not"),
    ("swinv2_tiny_window8_256", {}, "is a SwinTransformerV2, whose norm2 normalises what the FFN has written"),
    ("swinv2_cr_tiny_224", {}, "is a SwinTransformerV2Cr, whose norm2 normalises what the FFN has written"),
    ("test_resnet", {}, "is a ResNet, not a plain ViT"),
]


def images(size: int | tuple[int, int], dynamic: bool, pad: bool) -> Tensor:
    """Two images of the model's size, or of another where that is dynamic."""
    height, width = (size, size) if isinstance(size, int) else size
    if dynamic:
        height, width = (height - 9, width - 16) if pad else (height, width - 16)
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def tune(model: Transformer, x: Tensor) -> None:
    """Two steps of AdamW: after the first `up` has left zero, after the second `down` its start."""
    freeze(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.tensor([0, 3])).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """(B, K) of the model in evaluation mode."""
    answer: Tensor = model.eval()(x)
    return answer


def widened(model: Transformer) -> float | tuple[float, ...]:
    """timm's `mlp_ratio` of the folded model: one number, or of a Swin one a stage."""
    widths, parts = topology_of(model).blocks, blocks_of(model)
    hidden = {width: feed_forward(parts[name]).fc1.out_features for name, width in widths.items()}
    ratios = tuple(widened_ratio(inner + BOTTLENECK, width) for width, inner in hidden.items())
    return ratios if topology_of(model).stages else ratios[0]


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_a_plain_model_goes_the_whole_way_and_ends_in_timms_own_class(name: str, kwargs: dict[str, Any]) -> None:
    x = images(kwargs["img_size"], kwargs.get("dynamic_img_size", False), kwargs.get("dynamic_img_pad", False))
    plain = load_backbone(name, Weights("random"), CLASSES, **kwargs).double()

    model = attach(copy.deepcopy(plain), AdapterConfig(bottleneck=BOTTLENECK, experts=3, share="none")).double()
    torch.testing.assert_close(logits(model, x), logits(plain, x), rtol=0, atol=1e-12)
    frozen = {key: value.clone() for key, value in model.state_dict().items() if key not in task_state(model)}
    tune(model, x)
    assert all(torch.equal(value, frozen[key]) for key, value in model.state_dict().items() if key in frozen)
    expected = logits(model, x)
    plain.head = model.head
    assert (expected - logits(plain, x)).abs().max() > 1e-4
    assert len(adapters(model)) == topology_of(plain).depth

    merged = merge(copy.deepcopy(model))
    folded = fold(merged)
    wider = timm.create_model(name, num_classes=CLASSES, mlp_ratio=widened(plain), **kwargs).double()
    if isinstance(plain, Vit):
        # timm gives an attention pool the ratio of the blocks, but no task widens it.
        wider.attn_pool = plain.attn_pool
    wider.load_state_dict(folded.state_dict(), strict=True)
    for stage in (merged, folded, wider):
        torch.testing.assert_close(logits(stage, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "kwargs", "fault"), OTHER)
def test_any_other_model_is_refused_by_what_does_not_fit(name: str, kwargs: dict[str, Any], fault: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(name, Weights("random"), **kwargs)
    message = str(caught.value)
    assert message.startswith(name)
    assert fault in message
    assert "choose " in message
    assert "\n" not in message
