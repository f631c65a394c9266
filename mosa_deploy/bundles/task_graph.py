"""A task's own graph in its folder of a store, and the proof that lies beside it."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from mosa_deploy.bundles.store_layout import FOLDED, PARITY, UNFOLDED
from mosa_deploy.errors import StoreError
from mosa_deploy.utils.files import sha256

Fields = dict[str, Any]


class ProvedFile(BaseModel):
    """A file that an export proved with a task's bundle: one of the task's own, or a shared one."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    accuracy: float | None
    """On validation images of the task; None if there were none."""
    fault: str | None = None
    """Why the task should not be answered from it; None if it holds."""


PROVED_FILES = TypeAdapter(dict[str, ProvedFile])


def own_graph(folder: Path) -> Path | None:
    """The graph in a task's folder, if it has one."""
    return next((folder / name for name in (FOLDED, UNFOLDED) if (folder / name).is_file()), None)


def check_proved(path: Path, digest: str) -> None:
    """Compare a task's own graph, in whatever format, with what the export proved; `digest` is the bundle's.

    Raises:
        StoreError: the graph or the bundle was altered since, or the proof is missing.
    """
    proof = path.parent / PARITY
    try:
        fields = json.loads(proof.read_bytes())
        bundle, file = fields["bundle"], _files(fields).get(path.name)
        # Earlier releases recorded the fp32 graph alone, under a key of its own.
        known = file.sha256 if file else fields.get(f"{path.stem}_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{proof} is missing or damaged: export the task again") from None
    if known is None:
        raise StoreError(f"{proof} says nothing of {path.name}: export the task again")
    if not path.is_file() or (digest, sha256(path)) != (bundle, known):
        raise StoreError(f"{path} is not the graph that was proved with this bundle: export the task again")


def proved_files(content: bytes, digest: str) -> dict[str, ProvedFile]:
    """The files that the bytes of a `parity.json` prove, by name; none if it is damaged or of another bundle."""
    try:
        proof = json.loads(content)
        return _files(proof) if proof["bundle"] == digest else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _files(proof: Fields) -> dict[str, ProvedFile]:
    return PROVED_FILES.validate_python(proof.get("files", {}))
