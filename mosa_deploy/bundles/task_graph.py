"""A task's own graph in its folder of a store, and the proof that lies beside it."""

import json
from pathlib import Path

from mosa_deploy.bundles.store_layout import FOLDED, PARITY, UNFOLDED
from mosa_deploy.errors import StoreError
from mosa_deploy.utils.files import sha256


def own_graph(folder: Path) -> Path | None:
    """The graph in a task's folder, if it has one."""
    return next((folder / name for name in (FOLDED, UNFOLDED) if (folder / name).is_file()), None)


def check_proved(path: Path, digest: str) -> None:
    """Compare a task's own graph with what the export proved; `digest` is the bundle's.

    Raises:
        StoreError: the graph or the bundle was altered since, or the proof is missing.
    """
    proof = path.parent / PARITY
    try:
        proved = json.loads(proof.read_bytes())
        expected = proved["bundle"], proved[f"{path.stem}_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{proof} is missing or damaged: export the task again") from None
    if not path.is_file() or (digest, sha256(path)) != expected:
        raise StoreError(f"{path} is not the graph that was proved with this bundle: export the task again")
