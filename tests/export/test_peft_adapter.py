"""What PEFT saves, read without PEFT, and what is refused of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.peft_adapter import read_peft
from mosa_deploy.errors import BackboneError, BundleError
from tests.support.peft_models import of_timm, vit

A, B = "base_model.model.blocks.0.attn.qkv.lora_A.weight", "base_model.model.blocks.0.attn.qkv.lora_B.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written-out adapter: rank 2, lora_alpha 3, on qkv of one block."""
    made = tmp_path / "peft"
    made.mkdir()
    settings(made, peft_type="LORA", r=2, lora_alpha=3)
    generator = torch.Generator().manual_seed(0)
    shapes = {A: (2, 4), B: (12, 2), "base_model.model.head.weight": (3, 4), "base_model.model.head.bias": (3,)}
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        made / "adapter_model.safetensors",
    )
    return made


def settings(folder: Path, **changes: Any) -> None:
    """Change `adapter_config.json`."""
    path = folder / "adapter_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | changes))


def tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change `adapter_model.safetensors`."""
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors")


def refusal(folder: Path) -> str:
    """The one line with which reading is refused."""
    with pytest.raises(BundleError) as caught:
        read_peft(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("rslora", "factor"), [(False, 3 / 2), (True, 3 / 2**0.5)])
def test_the_scaling_goes_into_b(folder: Path, rslora: bool, factor: float) -> None:
    settings(folder, use_rslora=rslora)
    state = load_file(folder / "adapter_model.safetensors")
    found = read_peft(folder)
    (update,) = found.updates.values()
    assert list(found.updates) == [(0, "qkv")]
    assert (found.rank, found.targets, found.of_transformers) == (2, ("qkv",), False)
    torch.testing.assert_close(update.down, state[A], rtol=0, atol=0)
    torch.testing.assert_close(update.up, factor * state[B], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("patterns", "r", "alpha"),
    [
        ({"qkv": 1}, 1, 1),
        ({r"blocks\.0\.attn\.qkv": 1}, 1, 1),
        ({"^blocks.0.attn.qkv": 1}, 1, 1),
        ({"kv": 1}, 2, 3),
        ({"qkv": 1, "attn.qkv": 5}, 1, 1),
        (None, 2, 3),
    ],
)
def test_a_pattern_is_the_whole_name_or_its_end_after_a_dot(
    folder: Path, patterns: dict[str, int] | None, r: int, alpha: int
) -> None:
    settings(folder, rank_pattern=patterns, alpha_pattern=patterns)
    tensors(folder, lambda state: state.update({A: state[A][:r].clone(), B: state[B][:, :r].clone()}))
    (update,) = read_peft(folder).updates.values()
    expected = load_file(folder / "adapter_model.safetensors")[B] * alpha / r
    torch.testing.assert_close(update.up, expected, rtol=1e-6, atol=0)


def test_a_bin_file_and_half_precision_are_read_and_code_is_not_run(folder: Path) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: value.half() for name, value in state.items()}, folder / "adapter_model.bin")
    (update,) = read_peft(folder).updates.values()
    torch.testing.assert_close(update.down, state[A], rtol=0, atol=2e-3)
    torch.save({"state": Path("of a class")}, folder / "adapter_model.bin")
    with pytest.raises(BackboneError, match=r"^--from peft .*adapter_model\.bin holds no tensors, but state: give"):
        read_peft(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication [[0, 2]]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config {'loftq_bits': 4}"),
        ({"target_parameters": ["attn.qkv.weight"]}, "target_parameters ['attn.qkv.weight']"),
        ({"a_later_idea": 1, "use_qalora": True}, "a_later_idea 1, use_qalora True"),
    ],
)
def test_a_setting_that_does_not_end_in_a_plain_weight_is_refused_by_name(
    folder: Path, change: dict[str, Any], named: str
) -> None:
    settings(folder, **change)
    assert (
        f"adapter_config.json: {named} cannot be mapped: merge it: torch.save(PeftModel.from_pretrained(model,"
        f" '{folder}').merge_and_unload().state_dict(), 'merged.pth'), and convert that with --from timm merged.pth"
    ) in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "gaussian"},
        {"use_dora": False, "layer_replication": None, "loftq_config": {}, "fan_in_fan_out": True},
        {"inference_mode": True, "peft_version": "0.21.2", "target_modules": ["qkv"], "revision": "main"},
    ],
)
def test_settings_that_change_nothing_are_passed_over(folder: Path, change: dict[str, Any]) -> None:
    settings(folder, **change)
    assert read_peft(folder).rank == 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.pop(B), "holds blocks.0.attn.qkv.lora_A.weight: only linear layers"),
        (lambda s: s.update({"base_model.model.pool.weight": torch.ones(4)}), "holds pool.weight: only linear layers"),
        (lambda s: s.update({A: torch.ones(2, 3, 8, 8)}), "only linear layers of a ViT's blocks (q, k, v, qkv, proj,"),
        (
            lambda s: s.update({name.replace("attn.qkv", "mlp.qkv"): s.pop(name) for name in (A, B)}),
            "holds blocks.0.mlp.qkv.lora_A.weight, blocks.0.mlp.qkv.lora_B.weight: only",
        ),
        (
            lambda s: s.update({A: torch.ones(3, 4)}),
            "has A (3, 4) and B (12, 2), adapter_config.json says rank 2: save",
        ),
        (lambda s: s.pop("base_model.model.head.bias"), "holds no head with weight and bias: save the adapter with"),
        (lambda s: (s.pop(A), s.pop(B)), "holds no update of a block: convert a head alone with --from timm"),
    ],
)
def test_tensors_that_cannot_be_mapped_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], object], fault: str
) -> None:
    tensors(folder, change)
    assert fault in refusal(folder)


def test_an_adapter_without_the_head_is_refused_with_the_setting_that_keeps_it(tmp_path: Path) -> None:
    of_timm(tmp_path, target_modules=["qkv"], modules_to_save=None)
    assert "modules_to_save=['classifier'], of a timm model ['head']" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not a JSON object: save the adapter again"),
        ("[]", "Input should be a valid dictionary"),
        ('{"peft_type": "LORA", "r": 0}', "r: Input should be greater than 0; save the adapter again"),
        ("{}", "peft_type: Field required"),
    ],
)
def test_damaged_settings_are_refused(folder: Path, text: str, fault: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    assert fault in refusal(folder)


def test_a_folder_without_weights_or_settings_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors: give the folder that save_pretrained wrote" in refusal(folder)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json: No such file or directory; give the folder" in refusal(folder)


def test_the_names_are_those_of_transformers_today() -> None:
    names = {name.rpartition(".")[0] for name in vit().state_dict()}
    assert {"vit.layers.0.attention.q_proj", "vit.layers.5.mlp.fc2", "vit.layernorm", "classifier"} <= names
