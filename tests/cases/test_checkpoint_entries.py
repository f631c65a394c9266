"""What a checkpoint holds beside its weights: class names in any list, and what it was trained for."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export.convert import convert
from export.options import ConvertConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError
from tests.support.checkpoints import State
from tests.support.peft_models import NAME

NAMES = ["dog", "cat", "ant", "bee", "elk"]

Entries = Mapping[str, Any]


def converted(folder: Path, content: Entries) -> Bundle:
    torch.save(content, folder / "w.pth")
    given = ConvertConfig(folder / "w.pth", "timm", "parts", NAME, random_weights=True, out=folder / "run")
    return Bundle.load(convert(given))


@pytest.mark.parametrize("kept", [np.array(NAMES), np.array(NAMES, dtype=object), [name.encode() for name in NAMES]])
def test_class_names_may_lie_in_any_kind_of_list(tmp_path: Path, state: State, kept: Any) -> None:
    assert converted(tmp_path, {"state_dict": state, "classes": kept}).record.classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"class_to_idx": {name: i + 1 for i, name in enumerate(NAMES)}}, "its numbers do not count from 0 without a"),
        ({"classes": set(NAMES)}, "it has no order"),
    ],
)
def test_class_names_that_cannot_be_taken_are_not_passed_over(
    tmp_path: Path, state: State, entry: Entries, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, {"state_dict": state, **entry})
    assert (
        f"{next(iter(entry))} in {tmp_path}/w.pth names no classes that can be taken: {said}" in capsys.readouterr().out
    )


def test_settings_of_regression_are_refused(tmp_path: Path, state: State) -> None:
    with pytest.raises(ConfigError, match=r"w\.pth says task regression: a bundle answers with classes"):
        converted(tmp_path, {"state_dict": state, "config": {"task": "regression"}})


@pytest.mark.parametrize(
    "settings",
    [
        {"hyper_parameters": {"data": {"multi_label": True}}},
        {"problem_type": "multi_label_classification"},
        {"args": argparse.Namespace(task="multilabel", lr=0.1)},
    ],
    ids=str,
)
def test_settings_may_say_that_an_image_has_several_labels(tmp_path: Path, state: State, settings: Entries) -> None:
    assert converted(tmp_path, {"state_dict": state, **settings}).record.multi_label


@pytest.mark.parametrize("loss", ["BCEWithLogitsLoss", nn.BCEWithLogitsLoss()], ids=["by name", "as an object"])
def test_the_loss_of_a_sigmoid_is_said(
    tmp_path: Path, state: State, loss: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, {"state_dict": state, "hyper_parameters": {"criterion": loss, "multi_label": False}})
    assert "w.pth says criterion BCEWithLogitsLoss: its outputs are answered as a softmax" in capsys.readouterr().out
