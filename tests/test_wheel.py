"""The wheel as a stranger gets it: `make wheel`, then an environment outside of the repository."""

import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.installs import PACKAGES, copy_sources, new_environment, run
from tests.support.walker import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds, with the build tools of the environment that runs the tests."""
    copy = tmp_path_factory.mktemp("copy")
    copy_sources(copy)
    run(["make", "wheel", "--old-file=setup", f"BIN={Path(sys.executable).parent}"], copy)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment with the wheel and the extra `serve-cpu`."""
    python = new_environment(tmp_path_factory.mktemp("new") / "venv")
    run([python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[serve-cpu]"])
    return python.parent


def test_it_holds_the_files_of_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected


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
        "python -m mosa_deploy.archive",
        "python -m serving.ask",
    ],
)
def test_a_command_describes_itself_in_any_folder(command: str, installed: Path, tmp_path: Path) -> None:
    program, *arguments = command.split()
    assert run([installed / program, *arguments, "--help"], tmp_path).startswith(f"usage: {command} ")
