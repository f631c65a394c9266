"""The same tensors, another function: pooling, norm, activation, heads and eps are converted and kept apart."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.convert import convert
from export.export import export
from export.options import ConvertConfig, ExportConfig
from mosa_deploy.adapters.restore import restore
from mosa_deploy.adapters.save import save_bundle
from mosa_deploy.backbones.load import Weights, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import MosaError
from tests.support.peft_models import CLASSES, EQUAL, NAME, adapted, answers, difference, vit

AVERAGED: dict[str, Any] = {"global_pool": "avg", "fc_norm": False}


def tuned(**arguments: Any) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=CLASSES, **arguments)
    randomise(model)
    return model


def converted(path: Path, out: Path, **settings: Any) -> tuple[Bundle, Tensor]:
    config = ConvertConfig(path, "timm", "parts", NAME, random_weights=True, out=out, **settings)
    bundle = Bundle.load(convert(config))
    return bundle, answers(restore(bundle, Weights("random")))


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (AVERAGED, {"pool": "avg", "fc_norm": "no"}),
        ({"global_pool": "avg"}, {"pool": "avg"}),
        ({"act_layer": "quick_gelu"}, {"act": "quick_gelu"}),
        pytest.param(
            {"global_pool": "max", "fc_norm": False}, {"pool": "max", "fc_norm": "no"}, marks=pytest.mark.slow
        ),
        pytest.param({"act_layer": "gelu_tanh"}, {"act": "gelu_tanh"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_flags_say_what_a_bare_checkpoint_does_not(
    tmp_path: Path, arguments: dict[str, Any], flags: dict[str, Any]
) -> None:
    model = tuned(**arguments)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    _, given = converted(tmp_path / "w.safetensors", tmp_path / "run", **flags)
    assert difference(given, answers(model)) < EQUAL
    assert difference(answers(tuned()), answers(model)) > 5 * EQUAL


@pytest.mark.parametrize(
    "arguments",
    [AVERAGED, {"num_heads": 4}, {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False}],
    ids=str,
)
def test_the_config_of_timms_hub_says_it(tmp_path: Path, arguments: dict[str, Any]) -> None:
    model = tuned(**arguments)
    timm.models.save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    bundle, given = converted(tmp_path / "model.safetensors", tmp_path / "run")
    assert bundle.record.backbone.model_args == ModelArgs(**arguments)
    assert difference(given, answers(model)) < EQUAL


@pytest.mark.parametrize("where", ["args.yaml", "checkpoint"])
def test_the_arguments_of_timms_training_script_say_it(tmp_path: Path, where: str) -> None:
    model, arguments = tuned(**AVERAGED), {"model": NAME, "gp": "avg", "model_kwargs": {"fc_norm": False}}
    checkpoint = {"state_dict": model.state_dict(), "arch": NAME, "epoch": 1}
    if where == "args.yaml":
        (tmp_path / "args.yaml").write_text(json.dumps(arguments))
    else:
        checkpoint["args"] = argparse.Namespace(**arguments)
    torch.save(checkpoint, tmp_path / "last.pth.tar")
    _, given = converted(tmp_path / "last.pth.tar", tmp_path / "run")
    assert difference(given, answers(model)) < EQUAL


def test_an_adapter_on_an_averaging_vit(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=CLASSES, **AVERAGED)
    randomise(model)
    base = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head.")}
    save_file(base, tmp_path / "base.safetensors")
    peft = adapted(model, tmp_path / "peft", target_modules=["qkv"], modules_to_save=["head"])
    settings: dict[str, Any] = {"backbone_weights": tmp_path / "base.safetensors", "pool": "avg", "fc_norm": "no"}
    config = ConvertConfig(tmp_path / "peft", "peft", "parts", NAME, out=tmp_path / "run", **settings)
    bundle = Bundle.load(convert(config))
    weights = Weights("file", tmp_path / "base.safetensors")
    assert difference(answers(restore(bundle, weights)), answers(peft)) < EQUAL


def two_functions(folder: Path) -> list[Path]:
    """Runs of a head on one file of weights, which reads the class token and the mean of all patches."""
    weights = folder / "w.safetensors"
    save_file(tuned().state_dict(), weights)
    runs = []
    for name, flags in {"token": {}, "mean": {"pool": "avg", "fc_norm": "no"}}.items():
        settings: dict[str, Any] = {"backbone_weights": weights, "out": folder / name, **flags}
        runs.append(convert(ConvertConfig(weights, "timm", name, NAME, **settings)))
    return runs


def test_two_functions_of_one_file_are_two_backbones(tmp_path: Path) -> None:
    token, mean = (Bundle.load(run).record.backbone for run in two_functions(tmp_path))
    assert (token.model_args, mean.model_args) == (ModelArgs(), ModelArgs(**AVERAGED))
    assert token.folder != mean.folder


@pytest.mark.slow
def test_each_is_exported_with_a_shared_graph_of_its_own(tmp_path: Path) -> None:
    for run in two_functions(tmp_path):
        folder = export(ExportConfig(run, tmp_path / "store", tmp_path / "w.safetensors"))
        links = json.loads((folder / "parity.json").read_text())["links"]
        assert links[-1]["second"] == "shared ONNX"
    assert len(list((tmp_path / "store").glob("backbones/*/shared.onnx"))) == 2


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_a_task_keeps_its_function_when_the_config_beside_the_weights_is_lost_or_changed(
    tmp_path: Path, eps: float
) -> None:
    model = vit(layer_norm_eps=eps)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    run = convert(ConvertConfig(weights, "timm", "parts", NAME, weights, out=tmp_path / "run"))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "layer_norm_eps": 0.1, "hidden_act": "relu"}')
    assert difference(answers(restore(Bundle.load(run), Weights("file", weights))), answers(model)) < EQUAL


def test_a_model_of_the_users_own_loop_is_restored_with_its_function(tmp_path: Path) -> None:
    model = tuned(**AVERAGED, act_layer="quick_gelu")
    picture = encode((255 * torch.rand(20, 30, 3)).byte().numpy())
    settings: dict[str, Any] = {"task": "parts", "classes": "abcde", "images": [picture], "backbone": NAME}
    backbone = tmp_path / "w.safetensors"
    save_file(model.state_dict(), backbone)
    save_bundle(model, None, tmp_path / "run", source="file", **settings)
    restored = restore(Bundle.load(tmp_path / "run"), Weights("file", backbone))
    assert difference(answers(restored), answers(model)) < EQUAL


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            {"architecture": "vit_small_patch16_224"},
            r"config\.json is of vit_small_patch16_224, --backbone",
        ),
        (
            {"architecture": NAME, "model_args": {"norm_layer": "rmsnorm"}},
            r"config\.json: norm_layer rmsnorm cannot be kept: bring a model without that",
        ),
        ({"architecture": NAME, "global_pool": "map"}, r"config\.json: global_pool 'map': give one of token"),
        ({"model_type": "vit", "hidden_act": "mish"}, r"config\.json: hidden_act mish, known are gelu"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, content: dict[str, Any], fault: str) -> None:
    save_file(tuned().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(MosaError, match=fault):
        converted(tmp_path / "w.safetensors", tmp_path / "run")
    assert not (tmp_path / "run").exists()
