"""Snapshots of a folder, to compare before and after."""

from pathlib import Path


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """File name -> (content, modification time) of every file in a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
