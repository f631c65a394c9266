"""`mosa deploy`: from a run's folder to what a service answers."""

import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.cli import deploy
from mosa_deploy.errors import BundleError, ConfigError, DataError, ServiceError
from tests.support.app import listening, top
from tests.support.tasks import TaskMaker, picture


@pytest.fixture
def address(admin: TestClient) -> Iterator[str]:
    """Where the service listens."""
    with listening(admin.app) as address:
        yield address


def write(folder: Path, archive: Archive) -> str:
    """A bundle's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter.json").write_bytes(archive.record)
    (folder / "adapter.safetensors").write_bytes(archive.tensors)
    return str(folder)


def run(address: str, *arguments: str, key: str | None = "root-key") -> None:
    keys = ["--key", key] if key else []
    deploy([*arguments, "--to", address, *keys], "mosa deploy")


def test_a_run_is_packed_uploaded_and_served(
    address: str,
    admin: TestClient,
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    newer: Archive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(address.removeprefix("http://"), write(tmp_path / "run", newer))
    assert top(admin, "birds", maker.images[0])[0] == "class-9"
    old, new = (archive.bundle().digest[:12] for archive in (archives["birds"], newer))
    assert capsys.readouterr().out.splitlines() == [
        f"birds: bundle {new}, 32 classes, shared lane, by onnxruntime-cpu fp32",
        f"bundle {old} was served before: a rollback brings it back",
    ]


def test_a_run_whose_experts_are_apart_needs_no_merge(address: str, admin: TestClient, digits_run: Path) -> None:
    run(address, str(digits_run))
    assert admin.get("/v1/tasks/digits").json()["state"] == "active"


def test_a_packed_file_goes_to_a_lane(address: str, admin: TestClient, maker: TaskMaker, tmp_path: Path) -> None:
    (tmp_path / "moths.mosa").write_bytes(maker.make("moths", 3).pack())
    run(address, str(tmp_path / "moths.mosa"), "--lane", "folded")
    assert admin.get("/v1/tasks/moths").json()["lane"] == "folded"


def test_other_classes_name_the_flag_and_change_nothing(
    address: str, admin: TestClient, maker: TaskMaker, tmp_path: Path
) -> None:
    folder = write(tmp_path / "run", maker.make("birds", 3, classes=31))
    expected = "the classes of 'birds' would change (gone: class-31): add --new-classes if that is meant"
    with pytest.raises(ConfigError, match=f"^{expected}$".replace("(", r"\(").replace(")", r"\)")):
        run(address, folder)
    assert len(admin.get("/v1/tasks/birds").json()["classes"]) == 32
    run(address, folder, "--new-classes")
    assert len(admin.get("/v1/tasks/birds").json()["classes"]) == 31


class Terminal(io.StringIO):
    """A terminal on which the user types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "classes"), [("y\n", 31), ("n\n", 32), ("\n", 32), ("", 32)])
def test_on_a_terminal_other_classes_are_asked_about(
    address: str,
    admin: TestClient,
    maker: TaskMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    classes: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stdout", Terminal())
    folder = write(tmp_path / "run", maker.make("birds", 3, classes=31))
    if classes == 32:
        with pytest.raises(ConfigError, match=r"^'birds' stays as it was: the new classes were not confirmed$"):
            run(address, folder)
    else:
        run(address, folder)
    assert len(admin.get("/v1/tasks/birds").json()["classes"]) == classes


def test_a_removed_task_with_other_classes_names_the_flag_too(
    address: str, admin: TestClient, maker: TaskMaker, tmp_path: Path
) -> None:
    admin.delete("/v1/tasks/birds")
    with pytest.raises(ServiceError, match=r"add --new-classes if that is meant$"):
        run(address, write(tmp_path / "run", maker.make("birds", 3, classes=31)))


@pytest.mark.parametrize(("key", "said"), [(None, ""), ("wrong", "the service does not know this key: ")])
def test_without_an_admin_s_key_the_flag_is_named(
    address: str, newer: Archive, tmp_path: Path, key: str | None, said: str
) -> None:
    with pytest.raises(ServiceError, match=rf"^{said}give an admin's key by --key or MOSA_KEY$"):
        run(address, write(tmp_path / "run", newer), key=key)


def test_a_worse_version_is_refused_by_its_labelled_images(
    address: str,
    maker: TaskMaker,
    newer: Archive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for i in range(16):
        folder = tmp_path / "gate" / f"class-{i}" / "deeper"
        folder.mkdir(parents=True)
        (folder / "photo.png").write_bytes(maker.images[i])
    run_folder, gate = write(tmp_path / "run", newer), ("--gate", str(tmp_path / "gate"), "--margin", "0.35")
    with pytest.raises(ServiceError, match=r"'birds' is worse: accuracy 0.0000 .* --force to serve it all the same$"):
        run(address, run_folder, *gate)
    run(address, run_folder, *gate, "--force")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "accuracy 0.0000 on 16 labelled images, 1.0000 by the version before (margin 0.35)"


def test_two_labelled_images_name_the_flags(address: str, newer: Archive, tmp_path: Path) -> None:
    (tmp_path / "gate" / "class-1").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "gate" / "class-1" / f"{i}.png").write_bytes(picture(i))
    with pytest.raises(ServiceError, match=r"^2 labelled images cannot tell .* send as many, or --force$"):
        run(address, write(tmp_path / "run", newer), "--gate", str(tmp_path / "gate"))


def test_a_folder_of_images_that_is_no_class_is_named_before_anything_is_sent(newer: Archive, tmp_path: Path) -> None:
    (tmp_path / "gate" / "clas-1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"gate: unknown class 'clas-1'; did you mean "):
        run("http://127.0.0.1:9", write(tmp_path / "run", newer), "--gate", str(tmp_path / "gate"))


@pytest.mark.parametrize("margin", ["0", "1", "nan"])
def test_a_margin_that_cannot_be_is_named(tmp_path: Path, margin: str) -> None:
    with pytest.raises(ConfigError, match=r"^--margin .*: above 0 and below 1$"):
        run("http://127.0.0.1:9", str(tmp_path), "--margin", margin)


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"adapter.json: No such file"):
        run("http://127.0.0.1:9", str(tmp_path))
    with pytest.raises(DataError, match=r"nothing.mosa: No such file"):
        run("http://127.0.0.1:9", str(tmp_path / "nothing.mosa"))


def test_a_service_that_is_not_there_is_named(newer: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with pytest.raises(ServiceError, match=r"is it running at http://127\.0\.0\.1:9\?$"):
        run("http://127.0.0.1:9", write(tmp_path / "run", newer))
