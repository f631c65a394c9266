import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mosa_deploy.errors import DataError
from tests.support.images import DATA, write_jpegs
from training.tasks.base import Splits
from training.tasks.folder import Folder
from training.tasks.labels import Label

KINDS = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "trees", {"oak": 10, "ash": 5}, size=16)


def pack(folder: Path, path: Path, inside: str = ".", mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, inside)
    return path


def pack_with(folder: Path, path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    """The folder, then one more member."""
    member.size = len(content)
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
        archive.addfile(member, io.BytesIO(content))
    return path


def listed(splits: Splits) -> list[list[tuple[str, bytes, Label]]]:
    return [[(e.name, e.read(), e.label) for e in part] for part in (splits.train, splits.validation, splits.test)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Folder().splits(path, None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_archive_is_split_like_the_folder_however_compressed(folder: Path, tmp_path: Path, kind: str) -> None:
    archive = pack(folder, tmp_path / f"trees.{kind}", mode=KINDS[kind])
    splits = Folder().splits(archive, None)
    assert splits.classes == ("ash", "oak")
    assert listed(splits) == listed(Folder().splits(folder, None))


@pytest.mark.parametrize("inside", ["trees", "./trees", "data/trees"])
def test_common_folders_are_taken_off(folder: Path, tmp_path: Path, inside: str) -> None:
    archive = pack(folder, tmp_path / "trees.tar", inside)
    assert listed(Folder().splits(archive, None)) == listed(Folder().splits(folder, None))


def test_common_folder_of_a_folder_is_taken_off_too(folder: Path) -> None:
    assert listed(Folder().splits(folder.parent, None)) == listed(Folder().splits(folder, None))


def test_sets_below_a_common_folder_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        write_jpegs(tmp_path / "trees" / name, {"oak": count, "ash": 1})
    splits = Folder().splits(pack(tmp_path / "trees", tmp_path / "trees.tar", "trees"), None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 2, 3]
    assert splits.test[-1].read() == (tmp_path / "trees" / "test" / "oak" / "oak_2.jpg").read_bytes()


def test_archive_without_entries_of_folders_is_read(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "trees.tar", "w") as archive:
        for path in sorted(folder.rglob("*.jpg")):
            archive.add(path, path.relative_to(folder))
    assert listed(Folder().splits(tmp_path / "trees.tar", None)) == listed(Folder().splits(folder, None))


def test_hidden_members_and_those_that_are_no_images_are_left_out(folder: Path, tmp_path: Path) -> None:
    for name in ("oak/notes.txt", "oak/._oak_1.jpg", ".cache/x/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no image")
    splits = Folder().splits(pack(folder, tmp_path / "trees.tar"), None)
    assert splits.classes == ("ash", "oak")
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 15


def test_empty_class_of_an_archive_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "elm").mkdir()
    assert refusal(pack(folder, tmp_path / "trees.tar")).startswith("class 'elm' in ")


@pytest.mark.parametrize("name", ["/etc/oak/1.jpg", "../oak/1.jpg", "oak/../../1.jpg", "oak/.."])
def test_member_outside_the_archive_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    path = pack_with(folder, tmp_path / "trees.tar", tarfile.TarInfo(name), b"x")
    assert refusal(path) == f"--data-dir {path}: member '{name}' lies outside the archive; pack it again"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_link_or_device_is_named(folder: Path, tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("oak/passwd.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    path = pack_with(folder, tmp_path / "trees.tar", member)
    said = f"--data-dir {path}: member 'oak/passwd.jpg' is a link or a device; pack it again without it"
    assert refusal(path) == said


def test_newline_in_a_member_stays_in_the_line(folder: Path, tmp_path: Path) -> None:
    path = pack_with(folder, tmp_path / "trees.tar", tarfile.TarInfo("../a\nb.jpg"), b"x")
    assert r"member '../a\nb.jpg'" in refusal(path)


def test_nothing_is_written_to_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packed").mkdir()
    path = pack(folder, tmp_path / "packed" / "trees.tar")
    monkeypatch.chdir(tmp_path / "packed")
    listed(Folder().splits(path, None))
    assert list((tmp_path / "packed").iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.4, 0.7, 0.9, 0.97])
def test_broken_off_archive_is_refused(folder: Path, tmp_path: Path, kind: str, share: float) -> None:
    whole = pack(folder, tmp_path / f"whole.{kind}", mode=KINDS[kind]).read_bytes()
    end = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole)
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(whole[: int(share * end)])
    assert refusal(path).startswith(f"--data-dir {path} cannot be read to its end (")


def test_archive_cut_between_two_members_is_refused(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(pack(folder, tmp_path / "whole.tar")) as archive:
        cuts = [member.offset for member in archive.getmembers()][1:]
    whole = (tmp_path / "whole.tar").read_bytes()
    for cut in [*cuts, cuts[-1] + 100]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        assert "cannot be read to its end" in refusal(tmp_path / "cut.tar")


def test_checksum_of_a_compressed_archive_is_compared(folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "trees.tar.gz", mode="w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    assert "cannot be read to its end (BadGzipFile)" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x89PNG\r\n\x1a\n" + bytes(2000)])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert refusal(tmp_path / "x.tar").startswith(f"--data-dir {tmp_path / 'x.tar'} ")


def test_archive_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    assert "holds no images (left out as no images: 1 .txt): give a folder" in refusal(
        pack(tmp_path / "notes", tmp_path / "x.tar")
    )


@pytest.mark.data
def test_real_archive_of_photos_is_read() -> None:
    splits = Folder().splits(DATA / "ucmerced.tar", "80-10-10")
    assert len(splits.classes) == 21
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1680, 210, 210]
    assert splits.test[0].read().startswith(b"\xff\xd8")
