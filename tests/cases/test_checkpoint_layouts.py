"""What lies around a backbone in a checkpoint: a head of any name, two of them, or more than a bundle can hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from mosa_deploy.backbones.checkpoints import read_head
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from tests.support.checkpoints import State, brought, prefixed, refusal, split
from tests.support.peft_models import CLASSES

MLP = {"fc.0.weight": torch.ones(8, 64), "fc.0.bias": torch.ones(8), "fc.2.weight": torch.ones(5, 8)}
NORMED = {"fc.0.weight": torch.ones(64), "fc.0.bias": torch.ones(64), "fc.1.weight": torch.ones(5, 64)}


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (MLP, "(fc.0.weight, fc.0.bias, fc.2.weight): a bundle's head is one linear layer"),
        (NORMED, "(fc.0.weight, fc.0.bias, fc.1.weight): a bundle's head is one linear layer"),
        (
            {"pooler.dense.weight": torch.ones(64, 64), "fc.weight": torch.ones(5, 64)},
            "(pooler.dense.weight, fc.weight): it may read what the pooler gives, which a bundle cannot express",
        ),
        (
            {"fc.weight": torch.ones(5, 64), "aux.weight": torch.ones(3, 64)},
            "(fc.weight, aux.weight): a bundle's head is one linear layer",
        ),
    ],
)
def test_more_than_a_linear_head_is_refused_with_the_reason(
    tmp_path: Path, state: State, beside: State, named: str
) -> None:
    backbone, _ = split(state)
    torch.save(prefixed(backbone, "backbone.") | beside, tmp_path / "w.pth")
    assert f"has more than a linear head {named}" in refusal(tmp_path / "w.pth")


def test_a_head_inside_and_one_outside_are_not_chosen_between(tmp_path: Path, state: State) -> None:
    both = prefixed(state, "backbone.") | {"fc.weight": torch.ones(3, 64)}
    torch.save(both, tmp_path / "w.pth")
    assert "has two heads (head.weight, fc.weight)" in refusal(tmp_path / "w.pth")


def test_two_backbones_are_not_chosen_between(tmp_path: Path, state: State) -> None:
    torch.save(prefixed(state, "models.0.") | prefixed(state, "models.1."), tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").endswith(
        "holds 2 backbones: models.0, models.1; save the one that you mean by itself"
    )


def test_a_head_without_bias_has_zeros(tmp_path: Path, state: State) -> None:
    torch.save({name: value for name, value in state.items() if name != "head.bias"}, tmp_path / "w.pth")
    assert torch.equal(brought(tmp_path / "w.pth")["head.bias"], torch.zeros(CLASSES))


def test_a_model_with_lora_inside_is_sent_to_its_adapter(tmp_path: Path, state: State) -> None:
    lora = {name.replace("attn.qkv.", "attn.qkv.base_layer."): value for name, value in state.items()}
    lora["blocks.0.attn.qkv.lora_A.default.weight"] = torch.ones(2, 64)
    torch.save(prefixed(lora, "base_model.model."), tmp_path / "w.pth")
    assert "holds matrices of LoRA beside the weights: save the adapter with save_pretrained" in refusal(
        tmp_path / "w.pth"
    )


def test_a_head_on_the_class_token_and_the_mean_is_refused_by_its_width(tmp_path: Path, state: State) -> None:
    backbone, _ = split(state)
    torch.save(prefixed(backbone, "backbone.") | {"linear_head.weight": torch.ones(5, 128)}, tmp_path / "w.pth")
    assert "has a head that reads 128 values, such as the class token and the mean" in refusal(tmp_path / "w.pth")


def test_quantised_weights_are_not_taken_for_weights(tmp_path: Path, state: State) -> None:
    name = "blocks.0.mlp.fc1.weight"
    save_file(state | {name: (100 * state[name]).to(torch.int8)}, tmp_path / "w.safetensors")
    assert f"{name} is torch.int8, quantised: save its state dict in floating point" in refusal(
        tmp_path / "w.safetensors"
    )


def test_torchvisions_vit_answers_as_torchvision_does(tmp_path: Path) -> None:
    theirs = torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 96, num_classes=CLASSES).eval()
    randomise(theirs)
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    shape: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 3}
    ours = load_backbone("vit_base_patch16_224", Weights("file", tmp_path / "w.pth"), img_size=32, **shape)
    head = read_head(tmp_path / "w.pth", ours.state_dict(), "--from timm")
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x) @ head.weight.T + head.bias, theirs(x), rtol=1e-5, atol=1e-5)
