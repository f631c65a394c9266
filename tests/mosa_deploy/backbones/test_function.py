"""What a ViT computes with its tensors is told apart from timm's own model, and set anew."""

from typing import Any

import pytest
import timm
import torch

from mosa_deploy.backbones.function import departures
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError

NAME = "test_vit"

ARGUMENTS: list[dict[str, Any]] = [
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg"},
    {"global_pool": "max", "fc_norm": False, "pool_include_prefix": True},
    {"act_layer": "quick_gelu"},
    {"num_heads": 4},
    {"reg_tokens": 2},
    {"class_token": False, "global_pool": "avg", "no_embed_class": True},
]


def answers(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        features: torch.Tensor = model(torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)))
    return features


def timms(**arguments: Any) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=0, **arguments)
    model.train(False)
    return model


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_a_model_is_made_again_from_its_departures(arguments: dict[str, Any]) -> None:
    model = timms(**arguments)
    args = departures(NAME, model)
    assert args.given().items() >= arguments.items()
    again = load_backbone(NAME, Weights("random"), model_args=args)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(answers(again), answers(model))


def test_timms_own_model_departs_in_nothing() -> None:
    assert departures(NAME, timms()) == ModelArgs()
    siglip: Any = timm.create_model("vit_base_patch16_siglip_224", depth=1)
    assert departures("vit_base_patch16_siglip_224", siglip) == ModelArgs()


def test_the_same_tensors_with_another_function_are_another_backbone() -> None:
    state = timms().state_dict()
    quick, averaged = ModelArgs(act_layer="quick_gelu"), ModelArgs(global_pool="avg", fc_norm=False)
    assert len({fingerprint(state, args) for args in (None, quick, averaged)}) == 3
    assert fingerprint(state, ModelArgs()) == fingerprint(state)


def test_an_eps_is_set_in_every_norm() -> None:
    model = load_backbone(NAME, Weights("random"), model_args=ModelArgs(norm_eps=0.5))
    assert {part.eps for part in model.modules() if isinstance(part, torch.nn.LayerNorm)} == {0.5}
    assert departures(NAME, model) == ModelArgs(norm_eps=0.5)


def test_what_a_record_cannot_state_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"^test_vit with act_layer 'Mish' cannot be kept: tune a model without"):
        departures(NAME, timms(act_layer="mish"))
