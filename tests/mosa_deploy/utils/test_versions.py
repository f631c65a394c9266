import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mosa_deploy.utils import versions


def test_versions_are_those_of_the_installed_packages() -> None:
    found = versions.library_versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["mosa-deploy"] == importlib.metadata.version("mosa-deploy")


def test_commit_is_the_checkouts_own_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "mosa_deploy" / "utils" / "versions.py"))
    assert versions.git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "--quiet"], check=True, timeout=30)
    assert versions.git_commit() is None
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True, timeout=30)
    head = subprocess.run([*git, "log", "--format=%H"], check=True, timeout=30, capture_output=True, text=True)
    assert versions.git_commit() == head.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.git_commit() is None


def test_machine_names_its_cores_and_system() -> None:
    assert versions.machine().endswith(f", {os.cpu_count()} cores, {platform.system()}")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["/usr/bin/mosa", "latency", "--out", "my results"], "mosa latency --out 'my results'"),
        (["/src/export/latency.py", "--seconds", "5"], "python -m export.latency --seconds 5"),
    ],
)
def test_a_command_is_shown_as_it_is_typed(typed: list[str], shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", typed)
    assert versions.command_line("export.latency") == shown


def test_provenance_names_command_hardware_commit_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mosa", "compare"])
    monkeypatch.setattr(versions, "library_versions", lambda: {"python": "3.11", "torch": "2.15"})
    monkeypatch.setattr(versions, "git_commit", lambda: None)
    assert (
        versions.provenance("training.compare", "1 GPU")
        == "`mosa compare`; 1 GPU; commit unknown; python 3.11, torch 2.15"
    )
    own = versions.provenance("training.compare", commit="abc")
    assert own == f"`mosa compare`; {versions.machine()}; commit abc; python 3.11, torch 2.15"
