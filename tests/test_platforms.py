"""Every extra installs from wheels wherever `pyproject.toml` says so: a resolver asks the package index."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache

import pytest

from tests.support.walker import ROOT

pytestmark = pytest.mark.slow

EXTRAS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

SETUP = " ".join(re.findall(r"\.\[(.+)\]'", (ROOT / "Makefile").read_text())).replace(",", " ")
"""What `make setup` installs."""

PLATFORMS = {
    "linux-x86-64": "x86_64-manylinux_2_28",
    "linux-aarch64": "aarch64-manylinux_2_28",
    "macos-arm64": "aarch64-apple-darwin",
    "windows-x86-64": "x86_64-pc-windows-msvc",
}
"""Our name, and the resolver's."""

NEWER_GLIBC = {"tensorrt", "tensorrt-rtx", "openvino", "peers"}
"""Extras whose wheels for aarch64 need glibc 2.35."""

SOURCES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-rtx-cu13")
"""NVIDIA publishes these as sources alone, which name or fetch the wheels."""


@cache
def resolve(extras: str, platform: str, python: str) -> frozenset[str]:
    """The packages that pip would install, as `name==version`; a failure names the package that has no wheel."""
    target = PLATFORMS[platform]
    if extras in NEWER_GLIBC and platform == "linux-aarch64":
        target = "aarch64-manylinux_2_35"
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--constraint=constraints.txt"]
    command += ["--quiet", "--no-header", "--no-annotate", "--python", sys.executable]
    command += [f"--python-version={python}", f"--python-platform={target}", "--only-binary=:all:"]
    command += [f"--no-binary={name}" for name in SOURCES]
    command += [f"--extra={extra}" for extra in extras.split()]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.split())


everywhere = [(platform, python) for platform in PLATFORMS for python in ("3.11", "3.12", "3.13")]


@pytest.mark.parametrize(("platform", "python"), everywhere)
@pytest.mark.parametrize("extras", [*EXTRAS, SETUP])
def test_every_package_of_an_extra_has_a_wheel_of_the_version_that_is_pinned(
    extras: str, platform: str, python: str
) -> None:
    pins = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert resolve(extras, platform, python) - pins == set()


@pytest.mark.parametrize(("platform", "python"), everywhere)
def test_setup_installs_one_onnxruntime(platform: str, python: str) -> None:
    names = [each.partition("==")[0] for each in resolve(SETUP, platform, python)]
    runtimes = {"onnxruntime", "onnxruntime-gpu"}.intersection(names)
    assert runtimes == {"onnxruntime-gpu" if platform.endswith("x86-64") else "onnxruntime"}
