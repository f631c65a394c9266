from pathlib import Path

import pytest

from mosa_deploy.bundles import heif
from mosa_deploy.bundles.image_files import find_images, left_out, list_folder
from mosa_deploy.bundles.leftovers import leftover
from mosa_deploy.errors import DataError
from tests.support.images import write_images


def box(*brands: bytes) -> bytes:
    """The first box of a file: its kind, a version, and further brands."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(content) + 4).to_bytes(4) + content


@pytest.mark.parametrize("brands", [(b"heic",), (b"mif1", b"heic", b"miaf"), (b"heix", b"mif1"), (b"msf1", b"hevc")])
def test_heif_is_known_by_its_brands(brands: tuple[bytes, ...]) -> None:
    assert heif.is_heif(box(*brands) + b"more")


@pytest.mark.parametrize("content", [b"", b"ftyp", box(b"avif", b"mif1"), box(b"mif1", b"avif"), b"\x89PNG\r\n\x1a\n"])
def test_avif_and_other_files_are_no_heif(content: bytes) -> None:
    assert not heif.is_heif(content + b"heic")


@pytest.mark.parametrize("name", [".DS_Store", "._a.jpg", "THUMBS.DB", "Desktop.ini", "a.jpg~", "~$a.docx", "@eaDir"])
def test_leftovers_in_any_case(name: str) -> None:
    assert leftover(name)


@pytest.mark.parametrize("name", ["a.jpg", "thumbs", "_a.jpg", "macosx", "recycled", "@home", "#1.jpg"])
def test_names_that_are_no_leftovers(name: str) -> None:
    assert not leftover(name)


def test_kinds_are_counted_most_frequent_first_and_the_rare_ones_together() -> None:
    others = [".txt", *(f".a{i}" for i in range(20)), ".txt"]
    assert left_out(others, []) == (
        "left out as no images: 2 .txt, 1 .a0, 1 .a1, 1 .a10, 1 .a11, 1 .a12, 1 .a13, 1 .a14, 1 .a15, 1 .a16, 1 .a17,"
        " 1 .a18, 9 of other kinds"
    )


def test_nothing_left_out_is_no_line() -> None:
    assert left_out([], []) is None


def test_files_are_sorted_by_name_and_by_content(tmp_path: Path) -> None:
    write_images(tmp_path, "b/a.jpg", "b/0a4f", "c.MOV", "Thumbs.db", ".git/a.jpg")
    listing = list_folder(tmp_path)
    assert listing.folders == {("b",)}
    assert listing.images == {("b", "a.jpg"), ("b", "0a4f")}
    assert listing.others == {("c.MOV",): ".mov"}
    assert listing.leftovers == {("Thumbs.db",), (".git",)}


def test_a_file_that_is_named_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    write_images(tmp_path, "a.MOV", "b/c.jpg")
    found = find_images([tmp_path / "a.MOV", tmp_path / "b", tmp_path / "b" / "c.jpg"])
    assert found.images == [tmp_path / "a.MOV", tmp_path / "b" / "c.jpg"]


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; give images, or folders of images$"):
        find_images([tmp_path / "nowhere"])
