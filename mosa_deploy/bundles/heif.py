"""HEIC and HEIF, the photos of phones: Pillow reads them only with the extra `heif`, which brings pillow-heif."""

from mosa_deploy.errors import DataError

FORMAT = "HEIF"
"""Pillow's name of the format, once it is registered."""

SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})

INSTALL = "pip install 'mosa-deploy[heif]'"

BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
"""What the header of such a file names, first or among others; AVIF has the same container and other brands."""


def is_heif(content: bytes) -> bool:
    """Whether a file's first bytes are those of HEIC or HEIF."""
    if content[4:8] != b"ftyp":
        return False
    header = content[: min(int.from_bytes(content[:4]), 256)]
    brands = {header[8:12], *(header[i : i + 4] for i in range(16, len(header), 4))}
    return bool(brands & BRANDS)


def installed() -> bool:
    """Whether the extra is installed; if so, Pillow reads the format from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def require() -> None:
    """Let Pillow read the format.

    Raises:
        DataError: the extra is not installed.
    """
    if not installed():
        raise DataError(f"a HEIC image, which needs an extra here: {INSTALL}, or convert the image to JPEG")
