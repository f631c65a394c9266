"""What cannot be converted is refused in one line, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.convert import convert
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.errors import BackboneError, BundleError, ConfigError
from tests.support.peft_models import (
    CLASSES,
    EQUAL,
    NAME,
    adapted,
    answers,
    config,
    converted,
    difference,
    of_timm,
    run_module,
)


def nothing(tmp_path: Path) -> None:
    """Leave the folder as it is."""


def not_empty(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "theirs").touch()


@pytest.mark.parametrize(
    ("settings", "prepare", "fault"),
    [
        ({}, not_empty, r"--out .*run is not empty: choose another --out"),
        ({"name": "Parts!"}, nothing, r"--name Parts!: lower-case letters"),
        ({"image_size": 0}, nothing, r"--image-size 0: at least 1"),
        (
            {"image_size": 32, "preprocess": Path("p.json")},
            nothing,
            r"--image-size and --preprocess exclude each other",
        ),
        ({"classes": "a,b"}, nothing, r"--classes a,b: 2 names for the head's 5 outputs; give --classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], prepare: Callable[[Path], None], fault: str
) -> None:
    of_timm(tmp_path / "peft", target_modules=["qkv"])
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=fault):
        convert(config(tmp_path / "peft", tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "adapter.json").exists()


def test_an_adapter_that_cannot_be_mapped_is_refused_before_weights_are_asked_for(tmp_path: Path) -> None:
    of_timm(tmp_path / "peft", target_modules=["qkv"])
    (tmp_path / "peft" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(BundleError, match=r"peft_type LOHA cannot be mapped"):
        convert(config(tmp_path / "peft", tmp_path / "run", backbone_weights=tmp_path / "none", random_weights=False))


def test_a_head_that_lies_transposed_in_memory_is_written_as_it_reads(tmp_path: Path) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(model.get_classifier())
    state = dict(model.state_dict())
    state["head.weight"] = state["head.weight"].T.contiguous().T
    torch.save(state, tmp_path / "w.pth")
    _, given = converted(tmp_path / "w.pth", tmp_path / "run", source="timm")
    assert difference(given, answers(model)) < EQUAL


def test_updates_of_another_depth_and_width_are_listed(tmp_path: Path) -> None:
    deep = load_backbone("test_vit", Weights("random"), CLASSES, depth=7, mlp_ratio=2.0)
    adapted(deep, tmp_path / "peft", target_modules=["fc2"], modules_to_save=["head"])
    with pytest.raises(
        BundleError, match=r"do not fit its record: .*blocks\.0\.mlp\.fc2\.adapter\.fc2\.down\.weight is "
    ) as caught:
        convert(config(tmp_path / "peft", tmp_path / "run"))
    assert "unexpected blocks.6.mlp.fc2.adapter.fc2.down.weight" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_a_head_and_one_of_googles_are_refused(tmp_path: Path) -> None:
    model = load_backbone(NAME, Weights("random"))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"^--from timm .*w\.pth has no head: give a checkpoint with"):
        convert(config(tmp_path / "w.pth", tmp_path / "run", source="timm"))
    np.savez(tmp_path / "w.npz", allow_pickle=False, **{"Transformer/encoder_norm/scale": np.ones(3)})
    with pytest.raises(BackboneError, match=r"^--from timm .*w\.npz: only the backbone of an \.npz file is read"):
        convert(config(tmp_path / "w.npz", tmp_path / "run", source="timm"))
    torch.save(load_backbone(NAME, Weights("random"), CLASSES, depth=2).state_dict(), tmp_path / "short.pth")
    with pytest.raises(BackboneError, match=r"^--from timm .*short\.pth does not fit test_vit: missing blocks\.2\."):
        convert(config(tmp_path / "short.pth", tmp_path / "run", source="timm"))


def test_a_fault_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    line = ["export.convert", "--from", "peft", "none", "--name", "parts", "--backbone", NAME, "--random-weights"]
    done = run_module(line, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: none/adapter_config.json: No such file or directory;"
        " give the folder that peft's save_pretrained wrote\n"
    )
    assert list(tmp_path.iterdir()) == []
