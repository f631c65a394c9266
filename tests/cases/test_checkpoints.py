"""Checkpoints as people have them: each is read, or refused in one line that says what it is and what mends it."""

import argparse
import enum
import json
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support.checkpoints import State, brought, prefixed, refusal, split
from tests.support.peft_models import CLASSES, NAME


class Foreign:
    """A class that is not there when its pickle is read."""

    def __init__(self) -> None:
        self.rate = 0.1


class Attributes(dict[str, Any]):
    """A dictionary of another class, as Lightning's AttributeDict."""


class Names(list[str]):
    """A list of another class."""


class Colour(enum.Enum):
    """A value of settings."""

    RED = 1


def lightning(state: State) -> dict[str, Any]:
    backbone, head = split(state)
    settings = argparse.Namespace(lr=0.1, root=Path("data"), odd=Foreign(), colour=Colour.RED, more=Attributes(a=1))
    callbacks = defaultdict(list, {"best": [np.float64(0.9)]})
    return {
        "epoch": 9,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(prefixed(backbone, "model.backbone.") | prefixed(head, "model.head.")),
        "hyper_parameters": settings,
        "hparams_name": Names(["kwargs"]),
        "callbacks": callbacks,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3, 4)}}}],
    }


def wrapped(inner: str, outer: str) -> Callable[[State], dict[str, Any]]:
    """A module with the backbone and the head under these names, and a loss with weights of its own."""

    def make(state: State) -> dict[str, Any]:
        backbone, head = split(state)
        return prefixed(backbone, inner) | prefixed(head, outer) | {"criterion.weight": torch.ones(CLASSES)}

    return make


def with_average(state: State) -> dict[str, Any]:
    worse = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"state_dict": worse, "state_dict_ema": prefixed(state, "module."), "epoch": 3}


def in_two(state: State) -> dict[str, Any]:
    backbone, head = split(state)
    return {"backbone": backbone, "classifier": head, "acc": np.float32(0.5)}


def half(state: State) -> dict[str, Any]:
    return {name: value.bfloat16() for name, value in state.items()}


CONTAINERS: dict[str, Callable[[State], Any]] = {
    "Lightning": lightning,
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"lr": 0.1}, "loss": np.float64(1)},
    "net": lambda s: {"net": s, "acc": np.float64(91.5), "epoch": np.int64(3)},
    "model": lambda s: {"model": s, "best_acc": np.float32(0.9), "args": argparse.Namespace(a=Foreign())},
    "ema": with_average,
    "DDP": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled blocks": lambda s: {name.replace("blocks.0.", "blocks.0._orig_mod."): v for name, v in s.items()},
    "DDP of compiled": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "two entries": in_two,
    "arrays": lambda s: {"state_dict": {name: value.numpy() for name, value in s.items()}},
    "parameters": lambda s: {name: nn.Parameter(value) for name, value in s.items()},
    "averaged model": lambda s: {"n_averaged": torch.tensor(4)} | prefixed(s, "module."),
    "backbone + head": wrapped("backbone.", "head."),
    "encoder + fc": wrapped("encoder.", "fc."),
    "model.vit + model.classifier": wrapped("model.vit.", "model.classifier."),
    "Sequential": wrapped("0.", "1."),
    "Sequential with dropout": wrapped("net.0.", "net.2."),
    "head.1 after a dropout": wrapped("backbone.", "head.1."),
}


@pytest.mark.parametrize(
    ("kind", "legacy"), [*((kind, False) for kind in CONTAINERS), ("Lightning", True), ("net", True), ("arrays", True)]
)
def test_a_checkpoint_in_any_container_is_the_same_task(tmp_path: Path, state: State, kind: str, legacy: bool) -> None:
    torch.save(CONTAINERS[kind](state), tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    given = brought(tmp_path / "w.ckpt")
    assert given.keys() == state.keys()
    assert all(torch.equal(given[name], value) for name, value in state.items())


def test_half_precision_and_metadata_are_read(tmp_path: Path, state: State) -> None:
    save_file(half(state), tmp_path / "w.safetensors", metadata={"format": "pt", "note": "tuned"})
    given = brought(tmp_path / "w.safetensors")
    assert all(torch.equal(given[name], value.bfloat16().float()) for name, value in state.items())


@pytest.mark.parametrize("name", ["weights", "model.weights", "w.PTH", "w.safetensors"])
def test_content_decides_and_not_the_suffix(tmp_path: Path, state: State, name: str) -> None:
    torch.save(state, tmp_path / name)
    assert brought(tmp_path / name).keys() == state.keys()


def sharded(folder: Path, state: State) -> None:
    """A model in two files, as transformers saves a large one."""
    names = sorted(state)
    files = {name: f"model-{1 + (i % 2):05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_a_folder_and_a_model_in_several_files_are_read(tmp_path: Path, state: State) -> None:
    sharded(tmp_path, state)
    assert brought(tmp_path).keys() == state.keys()
    assert brought(tmp_path / "model.safetensors.index.json").keys() == state.keys()
    assert brought(tmp_path / "model-00001-of-00002.safetensors").keys() == state.keys()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert refusal(tmp_path).endswith("beside it: model-00002-of-00002.safetensors; fetch them")


def test_a_folder_without_one_file_of_weights_is_listed(tmp_path: Path, state: State) -> None:
    said = f"--from timm {tmp_path} is a folder with these files of weights:"
    assert refusal(tmp_path) == f"{said} none; give one file"
    for name in ("a.pth", "b.ckpt"):
        torch.save(state, tmp_path / name)
    assert refusal(tmp_path) == f"{said} a.pth, b.ckpt; give one file"
    (tmp_path / "b.ckpt").unlink()
    assert brought(tmp_path).keys() == state.keys()


def test_a_file_that_may_not_be_read_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    # Root may read everything.
    monkeypatch.setattr(Path, "open", denied)
    assert refusal(tmp_path / "w.pth").endswith("w.pth: Permission denied; make it readable, or give another file")


def scripted(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/constants.pkl", b"")
        archive.writestr("w/code/__torch__.py", b"")


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("run/model.pth", b"weights")


def tarred(file: Path) -> None:
    (file.parent / "model.pth").write_bytes(b"weights")
    with tarfile.open(file, "w") as archive:
        archive.add(file.parent / "model.pth", "model.pth")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346000000\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: fetch it again"),
        (LFS, "is a pointer of git-lfs, not the weights: run git lfs pull where it was cloned"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "is a web page, not weights: download the file itself, on the Hugging"),
        (b"\n<html><head>", "is a web page, not weights: download the file itself, on the Hugging"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes: give weights as .safetensors"),
        (b"\x1f\x8b\x08" + bytes(99), "is compressed by gzip: unpack it with gunzip"),
        (pickle.dumps({"coef_": 1}), "is a pickle, which may run code when it is read: if it is a classifier of"),
        (b'{"weights": 1}', "is no index of a model in several files: give weights as .safetensors"),
        (scripted, "is TorchScript, which is a program: if you trust it, run: python -c"),
        (zipped, "is a zip archive of run/model.pth: unpack it, and give the weights in it"),
        (tarred, "is a tar archive of model.pth: unpack it, and give the weights in it"),
        (bytes(600), "cannot be read: it is no file of weights; fetch it again"),
    ],
)
def test_what_holds_no_weights_is_named(tmp_path: Path, content: bytes | Callable[[Path], None], said: str) -> None:
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    assert refusal(file).startswith(f"--from timm {file} {said}")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_cut_short_is_said_to_be(tmp_path: Path, state: State, kind: str, share: float) -> None:
    file = tmp_path / "w"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    said = refusal(file)
    assert "is cut short: fetch it again" in said or ("cannot be read: " in said and "; fetch it again, or" in said)


def test_the_command_for_a_whole_module_mends_it(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    model.load_state_dict(state)
    torch.save({"model": model, "epoch": 3}, tmp_path / "w.pt")
    said, _, line = refusal(tmp_path / "w.pt").partition(" if you trust it, run: ")
    assert said.endswith("holds a whole module (VisionTransformer), which is code:")
    assert line.startswith('python -c "')
    monkeypatch.chdir(tmp_path)
    exec(line.removeprefix('python -c "').removesuffix('"'), {})
    assert brought(tmp_path / "w.state.pth").keys() == state.keys()


class Attack:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What unpickling would call."""
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_in_a_checkpoint_is_run(
    tmp_path: Path, state: State, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state, "hyper_parameters": Attack()}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    assert " holds more than tensors (" in refusal(tmp_path / "w.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_a_class_of_a_module_that_is_not_installed_is_not_needed(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("omegaconf_of_theirs")
    foreign = type("DictConfig", (), {"__module__": module.__name__})
    module.DictConfig = foreign  # type: ignore[attr-defined] # a module made by hand
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": state, "hyper_parameters": foreign()}, tmp_path / "w.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    assert brought(tmp_path / "w.ckpt").keys() == state.keys()
