"""Adapters of PEFT as people have them: each answers as peft does, or is refused with the line that helps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from export.convert import convert
from export.options import ConvertConfig
from export.peft_adapter import read_peft
from export.peft_merge import merge_adapter
from export.sources import of_peft
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import MosaError
from tests.support.peft_models import CLASSES, EQUAL, NAME, adapted, answers, difference, of_timm, vit

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:Adapter name")


def config(folder: Path, **settings: Any) -> ConvertConfig:
    return ConvertConfig(path=folder, source="peft", name="parts", backbone=NAME, random_weights=True, **settings)


def converted(folder: Path, **settings: Any) -> tuple[str, Tensor]:
    """The method of the converted task and its probabilities, by the same steps as `mosa convert` without its files."""
    given = config(folder, **settings)
    model = load_backbone(NAME, Weights("random"))
    assert isinstance(model, VisionTransformer)
    task = of_peft(given, read_peft(folder, given.adapter), model)
    tuned = load_backbone(NAME, Weights("random"), CLASSES)
    if task.method == "full":
        tuned.load_state_dict(task.tensors)
    else:
        tuned.load_state_dict(tuned.state_dict() | {n: v for n, v in task.tensors.items() if n.startswith("head.")})
    return task.method, answers(tuned)


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(MosaError) as caught:
        converted(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": ["qkv", "fc1", "attn.proj"]},
        {"lora_bias": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"bias": "all", "use_dora": True, "lora_bias": False},
        {"modules_to_save": ["head", "norm"]},
        {"target_modules": ["qkv", "proj"]},
        {"target_modules": ["qkv", "proj"], "use_dora": True},
    ],
    ids=lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_what_ends_in_a_plain_weight_and_bias_becomes_a_full_task(tmp_path: Path, settings: dict[str, Any]) -> None:
    tuned = moved(of_timm(tmp_path, **{"target_modules": ["qkv"], "r": 4, **settings}), tmp_path)
    method, given = converted(tmp_path)
    assert method == "full"
    assert difference(given, answers(tuned)) < EQUAL


def moved(tuned: Any, folder: Path) -> Any:
    """An adapter whose every tuned tensor has moved, as after training; saved again."""
    generator = torch.Generator().manual_seed(3)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            size = 0.1 * parameter.abs().mean().clamp(0.1)
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(str(folder))
    return tuned


def test_a_dora_on_transformers_changes_its_rows_of_qkv(tmp_path: Path) -> None:
    base = vit()
    randomise(base.classifier)
    base.save_pretrained(tmp_path / "vit")
    targets = ["q_proj", "v_proj", "fc2"]
    tuned = adapted(base, tmp_path / "peft", target_modules=targets, use_dora=True, modules_to_save=["classifier"])
    moved(tuned, tmp_path / "peft")
    weights = tmp_path / "vit" / "model.safetensors"
    given = ConvertConfig(tmp_path / "peft", "peft", "parts", NAME, backbone_weights=weights, out=tmp_path / "run")
    bundle = Bundle.load(convert(given))
    assert bundle.record.method == "full"
    assert difference(answers(restore(bundle, Weights("file", weights))), answers(tuned)) < EQUAL


def test_ia3_scales_outputs_and_inputs(tmp_path: Path) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    settings = IA3Config(
        target_modules=["qkv", "fc2"], feedforward_modules=["fc2"], modules_to_save=["head"], init_ia3_weights=False
    )
    tuned = get_peft_model(model, settings)
    tuned.eval()
    moved(tuned, tmp_path)
    method, given = converted(tmp_path)
    assert method == "full"
    assert difference(given, answers(tuned)) < EQUAL


def test_a_lora_on_the_head_too_is_merged_into_the_head_of_the_base_model(tmp_path: Path) -> None:
    """As `target_modules="all-linear"` makes it, which counts the classifier of an image model."""
    base = vit()
    randomise(base.classifier)
    base.save_pretrained(tmp_path / "vit")
    tuned = adapted(base, tmp_path / "peft", target_modules="all-linear", modules_to_save=None)
    weights = tmp_path / "vit" / "model.safetensors"
    given = ConvertConfig(tmp_path / "peft", "peft", "parts", NAME, backbone_weights=weights, out=tmp_path / "run")
    bundle = Bundle.load(convert(given))
    assert bundle.record.method == "lora"
    assert difference(answers(restore(bundle, Weights("file", weights))), answers(tuned)) < EQUAL
    assert refusal(tmp_path / "peft") == (
        f"--from peft {tmp_path}/peft updates the head of its base model, which it does not hold: give the checkpoint"
        " that was tuned, with its head, as --backbone-weights"
    )


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """An adapter as it should be."""
    of_timm(tmp_path / "lora", target_modules=["qkv"], r=4)
    return tmp_path / "lora"


def renamed(folder: Path, old: str, new: str) -> None:
    """Change the names of an adapter's tensors."""
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): value for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.", "base_model.model.base_model.model."),
        ("base_model.model.", ""),
        ("base_model.model.", "module.base_model.model."),
        (".weight", ".default.weight"),
        ("head.", "head.modules_to_save.default."),
    ],
)
def test_an_adapter_under_other_names_is_the_same(lora: Path, old: str, new: str) -> None:
    expected = read_peft(lora)
    if old == ".weight":
        for letter in "AB":
            renamed(lora, f"lora_{letter}.weight", f"lora_{letter}.default.weight")
    else:
        renamed(lora, old, new)
    found = read_peft(lora)
    assert found.head.keys() == expected.head.keys()
    for place, update in expected.updates.items():
        assert torch.equal(found.updates[place].up, update.up)


def test_one_of_several_adapters_is_chosen_by_its_name(lora: Path, tmp_path: Path) -> None:
    for name in ("weeds", "soil"):
        shutil.copytree(lora, tmp_path / "both" / name)
    renamed(tmp_path / "both" / "soil", "blocks.0.", "blocks.9.")
    assert refusal(tmp_path / "both") == (
        f"--from peft {tmp_path}/both holds 2 adapters, soil, weeds: choose with --adapter NAME"
    )
    assert (9, "qkv") in read_peft(tmp_path / "both", "soil").updates
    assert (9, "qkv") not in read_peft(tmp_path / "both", "weeds").updates
    assert refusal(tmp_path / "both", adapter="weed").endswith("unknown adapter 'weed'; did you mean weeds?")


def test_the_only_adapter_below_a_folder_needs_no_name(lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path / "run" / "checkpoint-500")
    assert read_peft(tmp_path / "run").updates


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_settings_written_on_windows_are_read(lora: Path, encoding: str) -> None:
    path = lora / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": "C:\\Mod\u00e8les"}
    path.write_bytes(json.dumps(settings, indent=2, ensure_ascii=False).replace("\n", "\r\n").encode(encoding))
    assert read_peft(lora).rank == 4


def test_a_pattern_that_matches_nothing_is_said(lora: Path) -> None:
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"qkv_proj": 64}}))
    assert read_peft(lora).notes == ("alpha_pattern qkv_proj matches no layer, in peft neither",)


def test_magnitudes_or_biases_that_were_tuned_but_not_saved_are_missed(lora: Path) -> None:
    path = lora / "adapter_config.json"
    for change, lacking in (
        ({"use_dora": True}, "blocks.0.attn.qkv.lora_magnitude_vector, blocks.1.attn.qkv.lora_magnitude_vector,"),
        ({"bias": "lora_only"}, "blocks.0.attn.qkv.bias, "),
        ({"bias": "all"}, "the biases of all layers, "),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | change))
        assert f"lacks {lacking}" in refusal(lora)
        path.write_text(before)


def test_another_kind_of_adapter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    get_peft_model(model, LoHaConfig(target_modules=["qkv"], modules_to_save=["head"])).save_pretrained(str(tmp_path))
    said = refusal(tmp_path)
    assert "adapter_config.json: " in said
    assert "peft_type LOHA cannot be mapped: merge it: torch.save(PeftModel.from_pretrained(model, " in said
    assert said.endswith(" and convert that with --from timm merged.pth")


def test_an_adapter_is_no_model(lora: Path) -> None:
    with pytest.raises(MosaError, match=r"is an adapter of PEFT, not a model: give it to mosa convert --from peft$"):
        load_backbone(NAME, Weights("file", lora))


class Around(nn.Module):
    """A module of the user's own."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.fc = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.backbone(images))
        return logits


def test_an_adapter_on_a_module_of_the_users_own_is_read(tmp_path: Path) -> None:
    head = nn.Linear(64, CLASSES)
    randomise(head)
    model = Around(load_backbone(NAME, Weights("random")), head)
    # Patterns go by the names in the whole model.
    tuned = adapted(
        model,
        tmp_path / "peft",
        target_modules=["qkv"],
        modules_to_save=["fc"],
        alpha_pattern={"^backbone.blocks.0.*": 3},
    )
    adapter = read_peft(tmp_path / "peft")
    assert adapter.notes == ("its head fc is taken to read what the backbone gives",)
    whole = load_backbone(NAME, Weights("random"))
    merged = load_backbone(NAME, Weights("random"), CLASSES)
    merged.load_state_dict(merge_adapter(adapter, whole.state_dict(), "") | dict(adapter.head))
    assert difference(answers(merged), answers(tuned)) < EQUAL


def test_a_norm_around_the_backbone_is_not_left_out(tmp_path: Path) -> None:
    model = Around(load_backbone(NAME, Weights("random")), nn.Sequential(nn.LayerNorm(64), nn.Linear(64, CLASSES)))
    adapted(model, tmp_path / "peft", target_modules=["qkv"], modules_to_save=["fc"])
    assert "holds backbone.blocks.0.attn.qkv" in refusal(tmp_path / "peft")


def test_a_head_of_several_layers_is_refused(tmp_path: Path) -> None:
    model: Any = load_backbone(NAME, Weights("random"), CLASSES)
    model.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    adapted(model, tmp_path / "peft", target_modules=["qkv"], modules_to_save=["head"])
    assert "has a head of several layers (head.0.bias, head.0.weight, " in refusal(tmp_path / "peft")
