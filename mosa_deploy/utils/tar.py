"""What the library for tar archives leaves open: a cut that it does not notice, and what it raises for others."""

import tarfile
import zlib
from lzma import LZMAError

DAMAGED_TAR = (tarfile.TarError, EOFError, OSError, LZMAError, zlib.error)
"""What the libraries raise for a tar archive that is cut off or damaged."""


def check_end(archive: tarfile.TarFile) -> None:
    """Check that the archive ends with a block of zeros; tarfile does not notice a cut between two members.

    Raises:
        ReadError: the archive was cut off.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")
    while archive.fileobj.read(1 << 20):  # A compressed file verifies its checksum only at its end.
        pass
