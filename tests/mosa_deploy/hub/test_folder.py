"""`mosa push` and `mosa pull` with a folder in the place of a repository."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.gate import LabelledImage, pack_images
from mosa_deploy.bundles.validation import PREFIX
from mosa_deploy.errors import BundleError, ConfigError, HubError
from mosa_deploy.hub.commands import pull, push
from tests.support.files import files_of
from tests.support.walker import ROOT

BUNDLE = {"adapter.json", "adapter.safetensors"}


def pushed(run: Path, *flags: str) -> Path:
    """The folder that stands for a repository, with the bundle in it."""
    remote = run.parent / "remote"
    push([str(run), str(remote), *flags], "mosa push")
    return remote


def pulled(remote: Path | str, *flags: str) -> Path:
    out = Path(str(remote).removeprefix("file://")).parent / "pulled"
    pull([str(remote), "--out", str(out), *flags], "mosa pull")
    return out


def test_what_is_pushed_is_pulled_byte_for_byte_without_the_rest_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = pushed(run)
    assert files_of(remote).keys() == BUNDLE | {"README.md"}
    out = pulled(f"file://{remote}")
    assert files_of(out) == {name: (run / name).read_bytes() for name in BUNDLE}
    digest = Bundle.load(run).digest[:12]
    assert capsys.readouterr().out.splitlines() == [
        f"toy: bundle {digest} in {remote}",
        f"{out}: bundle {digest} of toy, 2 classes, mosa on vit_toy, from {remote}",
        f"next: mosa export --bundle {out}, or mosa deploy {out}",
    ]


def test_a_mosa_file_is_pushed_too(run: Path) -> None:
    packed = run.parent / "toy.mosa"
    packed.write_bytes(Archive.of(run).pack())
    push([str(packed), str(run.parent / "remote")], "mosa push")
    assert Bundle.load(pulled(run.parent / "remote")).digest == Bundle.load(run).digest


def with_validation(run: Path) -> None:
    """Put a validation image beside a bundle, as an export does."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    (run / "validation.zip").write_bytes(pack_images([LabelledImage("000.png", "sea", buffer.getvalue())], PREFIX))


def test_validation_images_stay_here_unless_they_are_asked_for(run: Path) -> None:
    with_validation(run)
    remote = pushed(run, "--validation-images")
    assert len(Archive.of(pulled(remote)).validation) == 1
    assert "1 more for validation" in (remote / "README.md").read_text()
    pushed(run)
    assert files_of(remote).keys() == BUNDLE | {"README.md"}


def test_a_second_push_replaces_the_bundle_and_leaves_other_files(run: Path) -> None:
    remote = pushed(run)
    (remote / "notes.txt").write_text("mine")
    first = Bundle.load(run)
    replace(first, record=first.record.model_copy(update={"temperature": 2.0})).save(run)
    pushed(run)
    assert Bundle.load(pulled(remote)).record.temperature == 2
    assert (remote / "notes.txt").read_text() == "mine"


def test_a_folder_with_something_else_is_not_overwritten(run: Path) -> None:
    remote = run.parent / "remote"
    remote.mkdir()
    (remote / "README.md").write_text("about another model")
    (remote / "model.bin").write_bytes(b"weights")
    before = files_of(remote)
    with pytest.raises(HubError, match=r"remote holds model\.bin, and no bundle: name a repository"):
        pushed(run)
    assert files_of(remote) == before


def test_a_run_that_is_not_finished_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is a run that is not finished: go on with its command and --resume"):
        push([str(tmp_path), str(tmp_path / "remote")], "mosa push")
    assert not (tmp_path / "remote").exists()


@pytest.mark.parametrize(
    ("repo", "flags", "reason"),
    [
        ("digits", [], r"digits: give OWNER/NAME on the hub, or a folder as \./NAME"),
        ("a/b/c", [], r"a/b/c: give OWNER/NAME"),
        ("file://server/share", [], r"the URL of a folder on this machine is file:///PATH"),
        ("./remote", ["--revision", "v1"], r"--revision v1: the folder remote has no revisions"),
        ("./remote", ["--private"], r"--private: who may read remote is up to its permissions"),
        ("./run/adapter.json", [], r"run/adapter\.json is a file: name a folder"),
        ("./remote", ["--validation-images"], r"--validation-images: run has none"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, repo: str, flags: list[str], reason: str
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(ConfigError, match=reason):
        push(["run", repo, *flags], "mosa push")


def test_an_existing_folder_is_not_written_into(run: Path) -> None:
    remote = pushed(run)
    with pytest.raises(ConfigError, match=r"run is there already: choose another --out"):
        pull([str(remote), "--out", str(run)], "mosa pull")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"nowhere: no such folder; name one, or a repository of the hub as OWNER/NAME"):
        pulled(tmp_path / "nowhere")


def test_without_out_it_becomes_a_run_of_the_remotes_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = pushed(run)
    monkeypatch.chdir(run.parent)
    pull([str(remote)], "mosa pull")
    assert Bundle.load(Path("runs", "remote")).record.task == "toy"


def refusal(remote: Path, *flags: str) -> str:
    """Why a remote is not pulled; nothing is left behind."""
    with pytest.raises((BundleError, HubError)) as caught:
        pulled(remote, *flags)
    assert not [path for path in remote.parent.iterdir() if "pulled" in path.name]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_bundle_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "pytorch_model.bin").write_bytes(b"")
    expected = "is no bundle: it has no adapter.json and no adapter.safetensors; it holds pytorch_model.bin"
    assert refusal(remote) == f"{remote} {expected}"


def test_an_altered_byte_is_found(run: Path) -> None:
    remote = pushed(run)
    content = bytearray((remote / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (remote / "adapter.safetensors").write_bytes(content)
    assert "adapter.safetensors was altered or cut short" in refusal(remote)


def test_validation_images_of_another_task_are_refused(run: Path) -> None:
    with_validation(run)
    remote = pushed(run, "--validation-images")
    (remote / "validation.zip").write_bytes(pack_images([LabelledImage("000.png", "sky", b"")], PREFIX))
    assert "unknown class 'sky'" in refusal(remote)


def test_a_damaged_zip_of_images_is_refused(run: Path) -> None:
    remote = pushed(run)
    (remote / "validation.zip").write_bytes(b"no zip")
    assert "not a zip file" in refusal(remote)


def test_files_above_their_limits_are_refused_before_they_are_read(run: Path) -> None:
    remote = pushed(run)
    os.truncate(remote / "adapter.safetensors", 1_500_000)
    assert "adapter.safetensors has 1.5 MB; --max-size allows 1" in refusal(remote, "--max-size", "1")
    os.truncate(remote / "adapter.json", 1 << 21)
    assert "adapter.json has 2097152 bytes; at most 1048576 are allowed" in refusal(remote)


def test_what_is_no_part_of_a_bundle_is_not_fetched_and_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = pushed(run)
    (remote / "model.pkl").write_bytes(b"cos\nsystem\n")
    assert files_of(pulled(remote)).keys() == BUNDLE
    assert "\nnot fetched: model.pkl\n" in capsys.readouterr().out


def test_a_size_that_cannot_be_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-size 0: at least 1"):
        pulled(run, "--max-size", "0")


@pytest.mark.parametrize("name", ["push", "pull"])
def test_the_help_loads_neither_the_library_nor_numpy(name: str) -> None:
    code = (
        f"import sys\nfrom mosa_deploy.hub.commands import {name}\n"
        f"try:\n    {name}(['--help'], 'mosa {name}')\nexcept SystemExit:\n"
        "    sys.exit(bool({'huggingface_hub', 'numpy', 'pydantic'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)
