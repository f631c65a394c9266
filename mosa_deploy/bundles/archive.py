"""The `.mosa` file: a bundle as one zip of `adapter.safetensors` and `adapter.json`, for upload.

    mosa pack runs/digits digits.mosa

It may also hold labelled images: validation images of the task's tuning, see `mosa_deploy.bundles.validation`, and for
an upload those of a gate, see `mosa_deploy.bundles.gate`. They do not change which bundle it is.

It is read in memory, and everything is checked before anything is written: the names, the sizes that the directory
states, the ratio, the checksums, the hash, and every tensor. Members are stored with fixed times, so that the same
bundle gives the same bytes.
"""

import hashlib
import io
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.gate import DAMAGED_ZIP, LabelledImage, is_member, read_gate, read_members, write_members
from mosa_deploy.bundles.gate import PREFIX as GATE
from mosa_deploy.bundles.record import RECORD, TENSORS, parse_record
from mosa_deploy.bundles.validation import PREFIX as VALIDATION
from mosa_deploy.bundles.validation import check_validation, read_validation
from mosa_deploy.errors import BundleError
from mosa_deploy.utils.files import read_content

RECORD_LIMIT = 1 << 20
"""The most bytes of `adapter.json`; with a thousand classes it has 30 kB."""
RATIO_LIMIT = 100
"""How many times smaller a member may get by packing; weights hardly shrink, and class names shrink tenfold."""


@dataclass(frozen=True)
class Archive:
    """The bytes of a bundle's two files, and the labelled images that travel with it."""

    record: bytes
    tensors: bytes
    gate: tuple[LabelledImage, ...] = ()
    validation: tuple[LabelledImage, ...] = ()

    @property
    def key(self) -> str:
        """sha256 of the record, which holds that of the tensors: two archives with one key are the same bundle."""
        return hashlib.sha256(self.record).hexdigest()

    @classmethod
    def of(cls, folder: Path, gate: Path | None = None) -> "Archive":
        """Read the bundle in a folder with its validation images, and the images of a gate in another folder.

        Raises:
            BundleError: it is damaged or missing.
            DataError: the gate's images are missing, or not in folders named after the classes, or those that the
                bundle's run has kept are damaged.
        """
        record = Bundle.load(folder).record
        images = read_gate(gate, record) if gate else ()
        files = (folder / RECORD).read_bytes(), (folder / TENSORS).read_bytes()
        return cls(*files, images, read_validation(folder, record))

    @classmethod
    def read(cls, source: Path, gate: Path | None = None) -> "Archive":
        """Read a user's own bundle, as a folder or as a `.mosa` file; see `of`.

        Raises:
            MosaError: there is no whole bundle, or the gate's images cannot be used.
        """
        if source.is_dir():
            return cls.of(source, gate)
        archive = cls.unpack(read_content(source), sys.maxsize)
        return archive if gate is None else replace(archive, gate=read_gate(gate, archive.bundle().record))

    @classmethod
    def unpack(cls, content: bytes, limit: int) -> "Archive":
        """Read a zip whose members hold at most `limit` bytes together.

        Raises:
            BundleError: it is not a zip of these two files and such images, or larger than it may be.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _check(archive.infolist(), limit)
                # A member that is longer than the directory states is cut there, and its checksum fails.
                images = read_members(archive, GATE), read_members(archive, VALIDATION)
                return cls(archive.read(RECORD), archive.read(TENSORS), *images)
        except BundleError:
            raise
        except DAMAGED_ZIP as error:
            raise BundleError(f"not a readable .mosa file ({error}): pack it with `mosa pack`") from None

    def pack(self) -> bytes:
        """The bytes of the `.mosa` file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in ((RECORD, self.record), (TENSORS, self.tensors)):
                archive.writestr(zipfile.ZipInfo(name), content)
            write_members(archive, self.gate, GATE)
            write_members(archive, self.validation, VALIDATION)
        return buffer.getvalue()

    def bundle(self) -> Bundle:
        """The bundle that the two files hold.

        Raises:
            BundleError: the record, the tensors or the validation images are damaged, or do not fit each other.
        """
        bundle = Bundle.parse(parse_record(self.record, RECORD), self.tensors, TENSORS)
        check_validation(self.validation, bundle.record)
        return bundle


def _check(members: list[zipfile.ZipInfo], limit: int) -> None:
    """Raises BundleError if the zip's directory names other files, or larger ones; no member is opened."""
    names = sorted(
        member.orig_filename
        for member in members
        if not any(is_member(member.orig_filename, prefix) for prefix in (GATE, VALIDATION))
    )
    if names != sorted((RECORD, TENSORS)):
        shown = ", ".join(repr(name)[:80] for name in names[:5])
        raise BundleError(
            f"a .mosa file holds {RECORD}, {TENSORS} and images in {GATE}<class>/ and {VALIDATION}<class>/, and nothing"
            f" else, not {shown or 'nothing'}"
        )
    if len({member.orig_filename for member in members}) < len(members):
        raise BundleError("a .mosa file holds each name once: pack it with `mosa pack`")
    total = sum(member.file_size for member in members)
    if total > limit:
        raise BundleError(f"the .mosa file unpacks to {total} bytes; at most {limit} are allowed")
    for member in members:
        if member.filename == RECORD and member.file_size > RECORD_LIMIT:
            raise BundleError(f"{RECORD} has {member.file_size} bytes; at most {RECORD_LIMIT} are allowed")
        if member.file_size > RATIO_LIMIT * max(1, member.compress_size):
            raise BundleError(f"{member.filename} is packed to less than 1/{RATIO_LIMIT}: store it uncompressed")
