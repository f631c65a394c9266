"""Stores that are not folders, and folders whose writer was killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import Decision
from mosa_deploy.bundles.gate import LabelledImage, pack_images
from mosa_deploy.errors import StoreError
from serving.storage import LocalFiles, RemoteFiles, open_files
from serving.store import TaskStore
from tests.support.app import changing, put, running, top
from tests.support.files import files_of
from tests.support.tasks import TaskMaker, picture
from tests.support.walker import ROOT

LIMIT = 10 << 20


@pytest.fixture
def memory(maker: TaskMaker, archives: Mapping[str, Archive]) -> Iterator[str]:
    """The maker's store in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.put(str(maker.root), "/bucket/store", recursive=True)
    yield "memory://bucket/store"
    system.rm("/bucket", recursive=True)


def test_changes_of_a_store_behind_a_url_are_there_when_it_is_opened_again(memory: str, maker: TaskMaker) -> None:
    newer = maker.make("birds", 9)
    with changing(memory) as client:
        assert put(client, "birds", newer).status_code == 200
        assert put(client, "moths", maker.make("moths", 7)).status_code == 200
        assert client.delete("/v1/tasks/cracks").status_code == 204
    with running(memory) as again:
        assert top(again, "birds", maker.images[0]) == ("class-9", newer.bundle().digest)
        assert top(again, "moths", maker.images[0])[0] == "class-7"
        assert again.get("/v1/tasks/cracks").status_code == 404


def test_a_task_of_a_store_behind_a_url_is_rolled_back_after_a_restart(memory: str, maker: TaskMaker) -> None:
    with changing(memory) as client:
        assert top(client, "birds", maker.images[0])[0] == "class-0"
        put(client, "birds", maker.make("birds", 9))
    with changing(memory) as again:
        again.post("/v1/tasks/birds/rollback")
        assert top(again, "birds", maker.images[0])[0] == "class-0"


def test_a_url_that_cannot_be_opened_and_a_backbone_that_is_not_there_are_named() -> None:
    with pytest.raises(StoreError, match="nosuch://x cannot be opened"):
        open_files("nosuch://x")
    empty = RemoteFiles("memory://empty")
    with pytest.raises(StoreError, match="memory://empty/backbones/a: no such folder"):
        empty.local("backbones/a")
    empty.close()


def test_files_of_both_kinds_behave_alike(tmp_path: Path) -> None:
    for files in (LocalFiles(tmp_path), RemoteFiles("memory://alike")):
        assert files.names("a/b") == []
        with pytest.raises(FileNotFoundError):
            files.read("a/b/c")
        files.write("a/b/c", b"1")
        files.write("a/b/c", b"2")
        files.write("a/b/.hidden", b"3")
        assert (files.read("a/b/c"), files.names("a/b")) == (b"2", ["c"])
        assert (files.local("a/b") / "c").read_bytes() == b"2"
        files.remove("a/b/c")
        files.remove("a/b/c")
        assert files.names("a/b") == []
        files.close()


def test_a_folder_in_which_a_file_was_replaced_is_copied_again() -> None:
    files = RemoteFiles("memory://replaced")
    files.write("a/b", b"first")
    copy = files.local("a") / "b"
    kept = copy.stat().st_ino
    assert (files.local("a") / "b").stat().st_ino == kept
    files.write("a/b", b"other")
    assert (files.local("a") / "b").read_bytes() == b"other"
    files.close()


def test_a_version_is_read_only_if_it_is_the_one_that_was_named(copied: Path, maker: TaskMaker) -> None:
    store, archive = TaskStore(LocalFiles(copied), LIMIT), maker.make("birds", 9)
    store.keep(archive)
    store.decisions.write("birds", Decision(current=archive.key))
    assert store.version("birds", archive.key).digest == archive.bundle().digest
    (copied / "uploads" / f"{archive.key}.mosa").write_bytes(maker.make("birds", 8).pack())
    with pytest.raises(StoreError, match="was altered: upload the task again"):
        store.version("birds", archive.key)
    with pytest.raises(StoreError, match="no such file; upload the task again"):
        store.version("birds", "ab" * 32)


def test_a_folder_that_holds_another_task_is_refused(copied: Path) -> None:
    shutil.copytree(copied / "tasks" / "birds", copied / "tasks" / "dogs")
    with running(copied) as client:
        info = client.get("/v1/tasks/dogs").json()
        assert info["state"] == "refused"
        assert info["reason"].endswith("tasks/dogs holds the bundle of 'birds': give the folder that name")


WRITER = """
import sys
from pathlib import Path
from mosa_deploy.bundles.archive import Archive
from serving.storage import LocalFiles
from mosa_deploy.bundles.decision import Decision
from serving.store import TaskStore
root, *names = sys.argv[1:]
store = TaskStore(LocalFiles(Path(root)), 10 << 20)
store.decision("birds")
archives = [Archive.unpack(Path(name).read_bytes(), 10 << 20) for name in names]
print("ready", flush=True)
while True:
    for archive in archives:
        store.keep(archive)
        store.decisions.write("birds", Decision(current=archive.key, exported=store.exported("birds")))
"""


def test_a_writer_that_is_killed_at_any_moment_leaves_one_whole_version(
    copied: Path, maker: TaskMaker, tmp_path: Path
) -> None:
    archives = [maker.make("birds", seed) for seed in (9, 10)]
    paths = [tmp_path / f"{i}.mosa" for i in range(2)]
    for path, archive in zip(paths, archives, strict=True):
        path.write_bytes(archive.pack())
    store = TaskStore(LocalFiles(copied), LIMIT)
    keys = {archive.key for archive in archives}
    for i in range(12):
        command = [sys.executable, "-c", WRITER, str(copied), *map(str, paths)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.01 + 0.003 * i)
            os.kill(process.pid, signal.SIGKILL)
        decision = store.decision("birds")
        assert decision.current in keys | {store.exported("birds")}
        assert store.archive("birds", str(decision.current)).bundle().record.task == "birds"
    with running(copied) as client:
        assert top(client, "birds", maker.images[0])[0] in {"class-0", "class-9", "class-10"}


def test_the_halves_of_killed_writers_are_swept_once_they_are_old(copied: Path) -> None:
    (copied / "uploads").mkdir()
    old, young = (copied / "uploads" / f".{name}.mosa.1.tmp" for name in "xy")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with running(copied):
        pass
    assert not old.exists()
    assert young.exists()


def test_a_disk_that_cannot_be_written_leaves_the_old_version(copied: Path, maker: TaskMaker) -> None:
    with changing(copied) as client:
        before = files_of(copied)
        (copied / "uploads").write_bytes(b"a file in place of the folder")
        response = put(client, "birds", maker.make("birds", 9))
        assert response.status_code == 503
        assert top(client, "birds", maker.images[0])[0] == "class-0"
        (copied / "uploads").unlink()
        assert files_of(copied) == before


def carried(label: str) -> tuple[LabelledImage, ...]:
    """One validation image, of the size that the maker's tasks read."""
    return (LabelledImage("000.png", label, picture(size=(32, 32))),)


def test_the_validation_images_of_exported_and_uploaded_versions_are_there(copied: Path, maker: TaskMaker) -> None:
    store, uploaded = TaskStore(LocalFiles(copied), LIMIT), maker.make("birds", 9)
    exported = store.version("birds", str(store.exported("birds")))
    assert store.validation(exported) == ()
    (copied / "tasks" / "birds" / "validation.zip").write_bytes(pack_images(carried("class-1"), "validation/"))
    assert store.validation(exported) == carried("class-1")
    store.keep(replace(uploaded, validation=carried("class-2"), gate=carried("class-3")))
    assert store.validation(store.version("birds", uploaded.key)) == carried("class-2")


def test_damaged_validation_images_are_told_with_the_way_out(copied: Path) -> None:
    (copied / "tasks" / "birds" / "validation.zip").write_bytes(b"PK")
    store = TaskStore(LocalFiles(copied), LIMIT)
    with pytest.raises(StoreError, match=r"birds/validation\.zip is damaged .*: remove it, or export the task again"):
        store.validation(store.version("birds", str(store.exported("birds"))))


def test_a_version_takes_its_validation_images_along(copied: Path, maker: TaskMaker) -> None:
    (copied / "tasks" / "birds" / "validation.zip").write_bytes(pack_images(carried("class-1"), "validation/"))
    store = TaskStore(LocalFiles(copied), LIMIT)
    exported = store.archive("birds", str(store.exported("birds")))
    with changing(copied, versions=2) as client:
        put(client, "birds", replace(maker.make("birds", 8), validation=carried("class-2")))
        kept = [Archive.unpack(path.read_bytes(), LIMIT) for path in (copied / "uploads").iterdir()]
        assert {each.key: each.validation for each in kept}[exported.key] == carried("class-1")
        put(client, "birds", maker.make("birds", 9))
        put(client, "birds", maker.make("birds", 10))
    left = [Archive.unpack(path.read_bytes(), LIMIT) for path in (copied / "uploads").iterdir()]
    assert len(left) == 2
    assert all(each.validation == () for each in left)
