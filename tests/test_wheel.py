"""Wheel and source archive as a stranger gets them: `make wheel`, then an environment outside of the repository."""

import shutil
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.installs import BESIDE, PACKAGES, copy_sources, new_environment, run
from tests.support.walker import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")]


FIXTURES = ROOT / "tests" / "fixtures" / "v1"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds, with the build tools of the environment that runs the tests."""
    copy = tmp_path_factory.mktemp("copy")
    copy_sources(copy)
    # setuptools puts tests of such names into a source archive unless it is told not to.
    (copy / "tests").mkdir()
    (copy / "tests" / "test_wheel.py").touch()
    run(["make", "wheel", "--old-file=setup", f"BIN={Path(sys.executable).parent}"], copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel, which is built of the source archive."""
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def source(dist: Path) -> Path:
    """The source archive."""
    (built,) = dist.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment with the wheel and the extra `serve-cpu`."""
    python = new_environment(tmp_path_factory.mktemp("new") / "venv")
    run([python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[serve-cpu]"])
    return python.parent


def files_of_the_packages() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_files_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == files_of_the_packages()
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_source_archive_holds_what_the_wheel_is_built_of_and_nothing_else(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} == files_of_the_packages() | {*BESIDE} | made


def test_the_source_archive_installs_and_runs_elsewhere(source: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "venv")
    run([python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", source])
    mosa = python.parent / "mosa"
    assert "0.1.0" in run([mosa, "--version"], tmp_path)
    run([mosa, "pull", FIXTURES / "run", "--out", "birds"], tmp_path)
    assert "birds.mosa: " in run([mosa, "pack", "birds", "birds.mosa"], tmp_path)


def test_the_library_is_imported_from_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    printed = run([installed / "python", "-c", "import mosa_deploy; print(mosa_deploy.__file__)"], tmp_path)
    assert Path(printed.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize(
    "command",
    [
        "mosa",
        "mosa pack",
        "mosa predict",
        "mosa ask",
        "mosa serve",
        "mosa pull",
        "python -m mosa_deploy.archive",
        "python -m serving.ask",
    ],
)
def test_a_command_describes_itself_in_any_folder(command: str, installed: Path, tmp_path: Path) -> None:
    program, *arguments = command.split()
    assert run([installed / program, *arguments, "--help"], tmp_path).startswith(f"usage: {command} ")
