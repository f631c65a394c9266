"""Create virtual environments outside of the repository and run commands in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.walker import ROOT

PACKAGES = ("mosa_deploy", "training", "export", "serving")
"""The packages of the repository that are installed."""

BESIDE = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml")
"""The files of the repository that the source archive has beside the packages."""

SECONDS = 600


def run(command: list[str | Path], cwd: Path | None = None, **environment: str) -> str:
    """The output of a command, which must succeed. It sees installed packages, not those of the repository."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def new_environment(folder: Path) -> Path:
    """Create a virtual environment with only pip, and return its Python."""
    run([sys.executable, "-m", "venv", folder])
    return folder / "bin" / "python"


def copy_sources(folder: Path) -> None:
    """Copy the sources, because a build would leave files in the repository."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", *BESIDE):
        shutil.copy(ROOT / name, folder)
