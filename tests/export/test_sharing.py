"""Exports into one store wait for each other where they write what its tasks share."""

from pathlib import Path

import pytest
from filelock import Timeout

from export.export import export
from export.options import ExportConfig
from export.sharing import one_at_a_time


def is_free(store: Path) -> bool:
    try:
        with one_at_a_time(store).acquire(timeout=0):
            return True
    except Timeout:
        return False


def test_one_store_has_one_lock_however_it_is_named_and_no_file_for_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with one_at_a_time(tmp_path / "a"):
        assert not is_free(tmp_path / "b" / ".." / "a")
        assert is_free(tmp_path / "b")
    assert is_free(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


class TracedError(Exception):
    """Ends the export of a test."""


def test_no_other_export_traces_a_backbone_meanwhile(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    def traced(*arguments: object) -> None:
        found.append(is_free(tmp_path))
        raise TracedError

    monkeypatch.setattr("export.export.plain_graph", traced)
    with pytest.raises(TracedError):
        export(ExportConfig(bundle=digits_run, out=tmp_path))
    assert found == [False]
    assert is_free(tmp_path)
