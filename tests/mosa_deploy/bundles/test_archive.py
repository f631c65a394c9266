import io
import zipfile
import zlib
from pathlib import Path

import pytest

from mosa_deploy.bundles.archive import RECORD_LIMIT, Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import RECORD, TENSORS
from mosa_deploy.errors import BundleError
from tests.support.runs import small_bundle

LIMIT = 50_000_000


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    small_bundle().save(path)
    return path


@pytest.fixture(scope="session")
def packed(folder: Path) -> Archive:
    return Archive.of(folder)


def zipped(members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_packed_bundle_comes_back_and_any_zip_tool_reads_it(packed: Archive, folder: Path) -> None:
    content = packed.pack()
    assert Archive.unpack(content, LIMIT) == packed
    assert packed.bundle().digest == Bundle.load(folder).digest
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.read(TENSORS) == (folder / TENSORS).read_bytes()


def test_the_same_bundle_gives_the_same_bytes(packed: Archive) -> None:
    assert packed.pack() == Archive(packed.record, packed.tensors).pack()


def test_a_deflated_archive_is_the_same_bundle(packed: Archive) -> None:
    content = zipped([(RECORD, packed.record), (TENSORS, packed.tensors)], zipfile.ZIP_DEFLATED)
    assert Archive.unpack(content, LIMIT).key == packed.key


def test_another_record_of_the_same_tensors_has_another_key(packed: Archive) -> None:
    assert Archive(packed.record + b" ", packed.tensors).key != packed.key


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "nothing else, not nothing"),
        ([(RECORD, b"{}")], "nothing else, not 'adapter.json'"),
        ([("../" + RECORD, b"{}"), (TENSORS, b"")], r"not '\.\./adapter\.json'"),
        ([("/" + RECORD, b"{}"), (TENSORS, b"")], "nothing else"),
        ([(RECORD, b"{}"), (TENSORS, b""), ("run.py", b"")], "'run.py'"),
        ([(RECORD, b"x" * (RECORD_LIMIT + 1)), (TENSORS, b"")], "adapter.json has 1048577 bytes"),
        ([(RECORD, b"{}"), (TENSORS, b"0" * 2000)], "unpacks to 2002 bytes; at most 1000"),
    ],
)
def test_another_content_is_refused_by_its_directory(members: list[tuple[str, bytes]], reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        Archive.unpack(zipped(members), 1000 if "2002" in reason else LIMIT)


def test_a_name_that_is_there_twice_is_refused(packed: Archive) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zipped([(RECORD, packed.record), (RECORD, b"{}"), (TENSORS, packed.tensors)])
    with pytest.raises(BundleError, match="and nothing else"):
        Archive.unpack(content, LIMIT)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    content = zipped([(RECORD, b"{}"), (TENSORS, bytes(40_000_000))], zipfile.ZIP_DEFLATED)
    assert len(content) < 100_000
    with pytest.raises(BundleError, match="packed to less than 1/100"):
        Archive.unpack(content, LIMIT)


def test_a_member_that_holds_more_than_its_directory_says_is_refused() -> None:
    content = bytearray(zipped([(RECORD, b"{}"), (TENSORS, bytes(4000))], zipfile.ZIP_DEFLATED))
    stated = (4000).to_bytes(4, "little")
    assert content.count(stated) == 2
    altered = bytes(content).replace(stated, (400).to_bytes(4, "little"))
    with pytest.raises(BundleError, match=r"not a readable \.mosa file"):
        Archive.unpack(altered, LIMIT)


@pytest.mark.parametrize("cut", [0, 10, 1000, -1, -30])
def test_half_an_archive_is_refused_in_one_line(packed: Archive, cut: int) -> None:
    with pytest.raises(BundleError, match=r"not a readable \.mosa file") as caught:
        Archive.unpack(packed.pack()[:cut], LIMIT)
    assert "\n" not in str(caught.value)


def test_an_altered_byte_is_found(packed: Archive) -> None:
    content = bytearray(packed.pack())
    content[content.index(packed.tensors) + len(packed.tensors) // 2] ^= 1
    with pytest.raises(BundleError, match="CRC"):
        Archive.unpack(bytes(content), LIMIT)
    turned = bytearray(packed.tensors)
    turned[-1] ^= 1
    assert zlib.crc32(turned) != zlib.crc32(packed.tensors)
    with pytest.raises(BundleError, match="altered or cut short"):
        Archive(packed.record, bytes(turned)).bundle()


def test_a_deep_record_is_refused(packed: Archive) -> None:
    with pytest.raises(BundleError, match="not a JSON object"):
        Archive(b"[" * 500_000, packed.tensors).bundle()
