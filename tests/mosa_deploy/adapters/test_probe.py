"""What a probe's head reads, compared with formulas in numpy on what the blocks of timm's model write."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.adapters.attach import freeze, task_state
from mosa_deploy.adapters.probe import Probe, check_features
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.errors import BackboneError
from tests.support import swin
from tests.support.models import Toy

Double = NDArray[np.float64]

KINDS: dict[str, dict[str, Any]] = {
    "class token": {"depth": 5},
    "registers": {"depth": 5, "reg_tokens": 3},
    "two blocks": {"depth": 2},
    "pooled class token": {"depth": 5, "global_pool": "avg"},
    "no class token": {"depth": 5, "class_token": False, "global_pool": "avg"},
    "registers alone": {"depth": 5, "class_token": False, "global_pool": "avg", "reg_tokens": 2},
}


def block_outputs(model: VisionTransformer, images: torch.Tensor) -> list[Double]:
    """What each block writes (B, N, C)."""
    outputs: list[Double] = []
    handles = [
        block.register_forward_hook(lambda _module, _given, out: outputs.append(out.numpy()))
        for block in model.blocks.children()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return outputs


def reference(model: VisionTransformer, images: torch.Tensor, features: Features, query: Double) -> Double:
    """The features by their formulas, in float64."""
    norm = model.norm if isinstance(model.norm, torch.nn.LayerNorm) else model.fc_norm
    assert isinstance(norm, torch.nn.LayerNorm)
    gain, shift, eps = norm.weight.numpy(), norm.bias.numpy(), norm.eps

    def normed(x: Double) -> Double:
        centred = x - x.mean(-1, keepdims=True)
        return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain + shift)

    def token(x: Double) -> Double:
        return np.asarray(normed(x)[:, 0] if model.has_class_token else normed(x[:, model.num_prefix_tokens :]).mean(1))

    outputs = block_outputs(model, images)
    patches = normed(outputs[-1][:, model.num_prefix_tokens :])
    pooled = normed(outputs[-1])[:, 0]
    if model.global_pool == "avg":
        pooled = normed(outputs[-1][:, model.num_prefix_tokens :].mean(1))
    weights = softmax(patches @ query / np.sqrt(patches.shape[-1]), axis=1)
    if features == "attended":
        return np.asarray((weights[..., None] * patches).sum(1))
    earlier = map(token, outputs[-4:-1]) if features == "blocks" else ()
    return np.concatenate([*earlier, pooled, patches.mean(1)], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", ["cls+mean", "blocks", "attended"])
@torch.no_grad()
def test_features_are_those_of_the_formulas(toy: Toy, kind: str, features: Features) -> None:
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query = np.random.default_rng(0).normal(0, 3, 12)
    wanted = reference(toy(**KINDS[kind]).double(), images, features, query)
    probe = Probe(toy(**KINDS[kind]).double(), features, 0).eval()
    if probe.query is not None:
        probe.query.data = torch.from_numpy(query)
    np.testing.assert_allclose(probe(images).numpy(), wanted, atol=1e-12)


def test_a_fresh_query_gives_the_mean_of_the_patches(toy: Toy) -> None:
    images = torch.randn(2, 3, 16, 16)
    mean, attended = Probe(toy(), "cls+mean", 0).eval(), Probe(toy(), "attended", 0).eval()
    with torch.no_grad():
        torch.testing.assert_close(attended(images), mean(images)[:, 12:])


def test_a_task_owns_its_head_and_its_query(toy: Toy) -> None:
    probe = Probe(toy(), "attended", 4)
    freeze(probe)
    tuned = {name for name, parameter in probe.named_parameters() if parameter.requires_grad}
    assert tuned == set(task_state(probe)) == {"head.bias", "head.weight", "query"}


@pytest.mark.parametrize("features", ["cls+mean", "blocks", "attended"])
def test_a_swin_is_refused_with_the_way_out(features: Features) -> None:
    model = load_backbone(swin.NAME, Weights("random"))
    check_features(model, "cls")
    with pytest.raises(BackboneError, match=r"leave --features out|choose method linear, adapter or mosa"):
        check_features(model, features)
