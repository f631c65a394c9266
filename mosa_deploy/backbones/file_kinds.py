"""What a file given as weights really is, told by its content, and the one line that mends what cannot be read.

People give pages that a download saved under the name of the weights, pointers of git-lfs, archives with the weights
inside, and pickles. Nothing here reads more than a file's beginning and the list of an archive's members.
"""

import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from mosa_deploy.errors import BackboneError

Kind = Literal["safetensors", "torch", "npz", "json"]

TRUST = "if you trust it, run: "
"""Before a command that unpickles: only its owner can decide that."""

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number, with which files of `torch.save` began before they were zip files."""

WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
LFS_POINTER = b"version https://git-lfs"

FOREIGN = {
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "compressed by gzip: unpack it with gunzip",
    b"BZh": "compressed by bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "compressed by xz: unpack it with unxz",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
}
"""Beginnings of files that are recognised, to name them."""

READ = "give weights as .safetensors, a torch checkpoint or .npz"


def kind_of(file: Path, option: str) -> Kind:
    """The kind of a file, by its content.

    Raises:
        BackboneError: it holds no weights that can be read; says what it is, and what to do.
    """
    where = f"{option} {file}"
    try:
        with file.open("rb") as handle:
            begin = handle.read(512)
    except OSError as error:
        raise BackboneError(f"{where}: {error.strerror}; make it readable, or give another file") from None
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not begin:
        raise BackboneError(f"{where} is empty: fetch it again")
    if file.suffix == ".onnx":
        raise BackboneError(f"{where} is an ONNX graph, which has lost the names of its layers: {READ}")
    if text.startswith(LFS_POINTER):
        raise BackboneError(f"{where} is a pointer of git-lfs, not the weights: run git lfs pull where it was cloned")
    if text.startswith(WEB_PAGE):
        raise BackboneError(
            f"{where} is a web page, not weights: download the file itself, on the Hugging Face hub by"
            " /resolve/main/ instead of /blob/main/"
        )
    if zipfile.is_zipfile(file):
        return _kind_of_zip(file, where)
    if begin.startswith(b"PK\x03\x04"):
        raise BackboneError(f"{where} is cut short: fetch it again")
    if begin.startswith(LEGACY_TORCH):
        return "torch"
    if _is_safetensors(begin, file.stat().st_size, where):
        return "safetensors"
    if text.startswith(b"{"):
        return "json"
    return _refuse_other(file, begin, where)


def _is_safetensors(begin: bytes, size: int, where: str) -> bool:
    """Whether a file begins as safetensors do.

    Raises:
        BackboneError: it does, but is shorter than its own header says.
    """
    length = int.from_bytes(begin[:8], "little")
    if begin[8:9] != b"{" or length > 10**8:
        return False
    if 8 + length > size:
        raise BackboneError(f"{where} is cut short: fetch it again")
    return True


def _kind_of_zip(file: Path, where: str) -> Kind:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        code = f"import torch; torch.save(torch.jit.load('{file.as_posix()}').state_dict(), '{file.stem}.state.pth')"
        raise BackboneError(f'{where} is TorchScript, which is a program: {TRUST}python -c "{code}"')
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise BackboneError(f"{where} is a zip archive of {_listed(names)}: unpack it, and give the weights in it")


def _refuse_other(file: Path, begin: bytes, where: str) -> Kind:
    """Raises BackboneError with the name of what is in the file, where that is known."""
    names = _in_tar(file)
    if names:
        raise BackboneError(f"{where} is a tar archive of {_listed(names)}: unpack it, and give the weights in it")
    if (begin[:1] == b"\x80" and begin[1:2] <= b"\x05") or file.suffix in (".joblib", ".pkl", ".pickle", ".sav"):
        raise BackboneError(f"{where} is a pickle, which may run code when it is read: {_mend_pickle(file)}")
    for magic, what in FOREIGN.items():
        if begin.startswith(magic):
            raise BackboneError(f"{where} is {what}{'' if ':' in what else f': {READ}'}")
    raise BackboneError(f"{where} cannot be read: it is no file of weights; fetch it again, or {READ}")


def _in_tar(file: Path) -> list[str]:
    """The files in a tar archive; none if it is no such archive."""
    try:
        with tarfile.open(file) as archive:
            return [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, OSError, EOFError):
        return []


def _mend_pickle(file: Path) -> str:
    """The command that takes the coefficients of scikit-learn out of a pickle, or a state dict."""
    code = (
        f"import joblib, numpy as np; m = joblib.load('{file.as_posix()}');"
        f" np.savez('{file.stem}.npz', coef_=m.coef_, intercept_=m.intercept_, classes_=m.classes_.astype(str))"
    )
    return f'if it is a classifier of scikit-learn that you trust, run: python -c "{code}"; else {READ}'


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "nothing"


def mend_module(file: Path, key: str | None) -> str:
    """The command that saves the state dict of a whole pickled module, which lies under `key` if not None."""
    inner = f"['{key}']" if key else ""
    code = (
        f"import torch; m = torch.load('{file.as_posix()}', map_location='cpu', weights_only=False){inner};"
        " m = m if hasattr(m, 'state_dict') else m['model'] if isinstance(m, dict) else m.model;"
        f" torch.save(m.state_dict(), '{file.stem}.state.pth')"
    )
    return f'{TRUST}python -c "{code}"'
