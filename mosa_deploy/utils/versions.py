"""What a result was made with: libraries, commit, machine."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
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


def library_versions() -> dict[str, str]:
    """Name -> version of those of `LIBRARIES` that are installed, and Python's."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the source tree that this package runs from; None where it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def machine() -> str:
    """Processor and cores in words, e.g. `AMD EPYC, 2 cores, Linux`."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"
