"""Fixtures of this room: a bundle's folder, and a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mosa_deploy.bundles.bundle import Bundle
from tests.support.fake_hub import FakeHub, fake_hub


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Path:
    """A folder with a bundle, and with a file that is no part of it."""
    folder = tmp_path / "run"
    bundle.save(folder)
    (folder / "report.md").write_text("# toy\n")
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """An empty hub."""
    with fake_hub() as started:
        yield started
