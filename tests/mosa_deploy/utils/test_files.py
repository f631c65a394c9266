import hashlib
import os
from pathlib import Path

import pytest

from mosa_deploy.errors import WriteError
from mosa_deploy.utils.files import replacing, replacing_folder, sha256, write_csv, write_text


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in ("first", "é"):
        write_text(path, content)
        assert path.read_bytes() == content.encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_csv_file_has_its_names_and_a_line_for_each_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("name", "ms"), [("a,b", 1.5), ("c", None)])
    assert (tmp_path / "a.csv").read_bytes() == b'name,ms\r\n"a,b",1.5\r\nc,\r\n'


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as aside, aside.open("w") as handle:
        handle.writelines(["half", None])  # type: ignore[list-item]  # fails half-way on purpose
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []

    def fsync(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "12345")
    assert synced == [(5, False)]


def test_a_folder_is_replaced_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    for name in ("first", "second"):
        with replacing_folder(folder) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / name).write_text(name)
            assert not (folder / "deep" / name).exists()
        assert [path.name for path in folder.rglob("*")] == ["deep", name]
    assert [entry.name for entry in tmp_path.iterdir()] == ["task"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_error_keeps_the_old_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(TypeError), replacing_folder(folder) as aside, (aside / "file").open("w") as handle:
        handle.writelines(["half", None])  # type: ignore[list-item]  # fails half-way on purpose
    assert (folder / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["task"]


def test_a_folder_that_cannot_be_renamed_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "task", Path.replace
    folder.mkdir()
    (folder / "file").write_text("old")

    def refuse(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"), replacing_folder(folder) as aside:
        (aside / "file").write_text("new")
    assert (folder / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["task"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=rf"^{tmp_path} is a folder: name a file$"), replacing(tmp_path):
        pytest.fail("it was opened")
