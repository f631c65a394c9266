"""Archives as people pack them: by every tool, under every suffix, whole and damaged."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.images import jpeg, numbered
from tests.support.splits import names, refusal, sizes
from training.tasks.folder import Folder

NAMES = [*numbered("oak/{}.jpg", 5), *numbered("ash/{}.jpg", 5)]


def zipped(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip archive with a small image under each name; a name that ends with a slash is a folder."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else jpeg())
    return path


def tarred(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(jpeg())
            archive.addfile(member, io.BytesIO(jpeg()))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_read_like_a_tar(tmp_path: Path, method: int) -> None:
    by_zip = Folder().splits(zipped(tmp_path / "trees.zip", *NAMES, method=method), None)
    by_tar = Folder().splits(tarred(tmp_path / "trees.tar", *NAMES), None)
    assert by_zip.classes == by_tar.classes == ("ash", "oak")
    assert [(e.name, e.read(), e.label) for e in by_zip.train] == [(e.name, e.read(), e.label) for e in by_tar.train]
    assert names(by_zip) == set(NAMES)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "jpg", ""])
def test_a_zip_under_a_wrong_suffix(tmp_path: Path, suffix: str) -> None:
    assert names(Folder().splits(zipped(tmp_path / f"trees.{suffix}", *NAMES), None)) == set(NAMES)


def test_a_tar_under_the_suffix_zip(tmp_path: Path) -> None:
    assert names(Folder().splits(tarred(tmp_path / "trees.zip", *NAMES), None)) == set(NAMES)


def test_a_tar_whose_first_class_is_called_pk(tmp_path: Path) -> None:
    found = Folder().splits(tarred(tmp_path / "trees.tar", *numbered("PK/{}.jpg", 5), *NAMES), None)
    assert found.classes == ("PK", "ash", "oak")


def test_a_zip_of_a_mac(tmp_path: Path) -> None:
    more = ["trees/", "trees/oak/", "trees/.DS_Store", "__MACOSX/trees/oak/._0.jpg", "__MACOSX/trees/._.DS_Store"]
    splits = Folder().splits(zipped(tmp_path / "trees.zip", *more, *(f"trees/{name}" for name in NAMES)), None)
    assert names(splits) == set(NAMES)
    assert splits.remarks == ("skipped as leftovers of systems and tools: 1 .DS_Store, 1 __MACOSX",)


def test_a_zip_with_backslashes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "trees.zip", *(f"trees\\{name}".replace("/", "\\") for name in NAMES))
    assert names(Folder().splits(path, None)) == set(NAMES)


def with_raw_names(path: Path, raw: bytes) -> Path:
    """A zip whose class `aaaa` has other bytes as its name, not marked as UTF-8."""
    zipped(path, *numbered("aaaa/{}.jpg", 5), *numbered("oak/{}.jpg", 5))
    path.write_bytes(path.read_bytes().replace(b"aaaa/", raw + b"/"))
    return path


def test_names_of_an_old_windows_tool_are_read_by_code_page_437_and_said(tmp_path: Path) -> None:
    splits = Folder().splits(with_raw_names(tmp_path / "trees.zip", "café".encode("cp437")), None)
    assert splits.classes == ("café", "oak")
    guess = "names in the zip archive that are not marked as UTF-8 are read by code page 437, such as"
    assert splits.remarks == (f"{guess} 'café/0.jpg'",)


def test_names_in_utf_8_that_are_not_marked_are_read_as_such(tmp_path: Path) -> None:
    splits = Folder().splits(with_raw_names(tmp_path / "trees.zip", "élé"[:2].encode() + b"m"), None)
    assert splits.classes == ("oak", "élm")
    assert splits.remarks == ()


def test_other_files_in_an_archive_are_counted(tmp_path: Path) -> None:
    splits = Folder().splits(zipped(tmp_path / "trees.zip", *NAMES, "oak/a.MOV", "LICENSE.txt", "oak/0a4f"), None)
    assert splits.remarks == ("left out as no images: 1 .mov, 1 .txt",)
    assert "oak/0a4f" in names(splits)


def test_an_archive_in_an_archive_is_named(tmp_path: Path) -> None:
    inner = tarred(tmp_path / "trees.tar", *NAMES)
    with zipfile.ZipFile(tmp_path / "trees.zip", "w") as archive:
        archive.write(inner, "trees.tar")
    assert "trees.zip holds no images (left out as no images: 1 .tar): give a folder, or a" in refusal(
        tmp_path / "trees.zip"
    )


@pytest.mark.parametrize("name", ["../oak/1.jpg", "/oak/1.jpg", "oak/../../1.jpg", "C:/oak/1.jpg", "..\\oak\\1.jpg"])
def test_a_member_outside(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES, name)
    written = name.replace("\\", "/")
    assert refusal(path) == f"--data-dir {path}: member {written!r} lies outside the archive; pack it again"


def test_the_same_file_twice_is_one(tmp_path: Path) -> None:
    splits = Folder().splits(tarred(tmp_path / "trees.tar", *NAMES, "oak/0.jpg"), None)
    assert sizes(splits) == sizes(Folder().splits(tarred(tmp_path / "once.tar", *NAMES), None))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "trees.tar", *NAMES)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("oak/0.jpg")
        member.size = len(jpeg()) + 1
        archive.addfile(member, io.BytesIO(jpeg() + b"0"))
    assert refusal(path) == f"--data-dir {path} holds two files 'oak/0.jpg' that differ: pack it again"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device(tmp_path: Path, kind: int) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES)
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("oak/passwd.jpg")
        member.create_system, member.external_attr = 3, (kind | 0o644) << 16
        archive.writestr(member, "/etc/passwd")
    said = "member 'oak/passwd.jpg' is a link or a device; pack it again without it"
    assert refusal(path) == f"--data-dir {path}: {said}"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    path.write_bytes(content)
    assert refusal(path) == f"--data-dir {path} is encrypted: unpack it with its password, and give the folder"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_zip_that_broke_off(tmp_path: Path, share: float) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path).startswith(f"--data-dir {path} cannot be read to its end (BadZipFile): give a folder, or a")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_with_a_flipped_bit(tmp_path: Path, method: int) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES, method=method)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04", 10) - 20] ^= 4
    path.write_bytes(content)
    assert refusal(path).startswith(f"--data-dir {path} cannot be read to its end (")


def test_a_method_that_is_not_known(tmp_path: Path) -> None:
    path = zipped(tmp_path / "trees.zip", *NAMES)
    content = path.read_bytes().replace(b"PK\x03\x04\x14\0\0\0\x08", b"PK\x03\x04\x14\0\0\0\x09")
    path.write_bytes(content.replace(b"PK\x01\x02\x14\x03\x14\0\0\0\x08", b"PK\x01\x02\x14\x03\x14\0\0\0\x09"))
    assert refusal(path).startswith(f"--data-dir {path} cannot be read to its end (NotImplementedError): ")


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"), (b"Rar!\x1a\x07\x01\x00", "a RAR archive")],
)
def test_other_archives_are_named(tmp_path: Path, head: bytes, kind: str) -> None:
    (tmp_path / "trees.zip").write_bytes(head + bytes(100))
    assert refusal(tmp_path / "trees.zip").startswith(f"--data-dir {tmp_path}/trees.zip is {kind}, which is not read: ")


def test_sets_in_a_zip(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "trees.zip", *(f"data/{part}/{name}" for part in ("Training", "Testing") for name in NAMES)
    )
    splits = Folder().splits(path, None)
    assert sizes(splits) == [8, 2, 10]


def test_a_photo_in_place_of_a_folder_is_called_an_image(tmp_path: Path) -> None:
    (tmp_path / "rose.jpg").write_bytes(jpeg())
    assert refusal(tmp_path / "rose.jpg").startswith(
        f"--data-dir {tmp_path / 'rose.jpg'} is an image, not a folder, which is not read: give a folder, or a tar or"
    )
