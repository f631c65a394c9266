"""What made a result: command, machine, commit, libraries."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    "mosa-deploy",
    "torch",
    "timm",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pillow",
    "bentoml",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
)


def provenance(module: str, hardware: str | None = None, commit: str | None = None) -> str:
    """What made a result, in one line for its report: command, hardware, commit and versions.

    `module` is the one that `python -m` would run; `hardware` is `machine()` if None, `commit` that of the checkout.
    """
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    commit = commit or git_commit() or "unknown"
    return f"`{command_line(module)}`; {hardware or machine()}; commit {commit}; {versions}"


def command_line(module: str) -> str:
    """The command of this process as a user types it: `mosa ...`, or else `python -m <module> ...`."""
    program = ["mosa"] if Path(sys.argv[0]).stem == "mosa" else ["python", "-m", module]
    return shlex.join([*program, *sys.argv[1:]])


def library_versions() -> dict[str, str]:
    """Name -> version of Python and of those of `LIBRARIES` that are installed."""
    return {"python": platform.python_version(), **installed_versions(LIBRARIES)}


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the git checkout that this package runs from; None if it runs from no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def machine() -> str:
    """Processor, cores and system, e.g. `AMD EPYC, 2 cores, Linux`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"
