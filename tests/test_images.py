"""The Dockerfiles, as far as they can be tested where nothing builds containers."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from mosa_deploy import __version__
from mosa_deploy.bundles.archive import Archive
from serving.settings import Settings, variable
from tests.support.dockerfile import DOCKERFILES, PLACE, Dockerfile
from tests.support.installs import BESIDE, PACKAGES
from tests.support.tasks import TaskMaker
from tests.support.walker import ROOT

USER = 10001


@pytest.fixture(params=DOCKERFILES)
def file(request: pytest.FixtureRequest) -> Dockerfile:
    return Dockerfile.read(request.param)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_file_that_was_never_built_says_so_first(name: str) -> None:
    assert (ROOT / name).read_text().startswith("# not built: ")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_copies_what_the_wheel_is_made_of_and_the_ignore_file_lets_it_through(file: Dockerfile) -> None:
    assert {*file.copied()} == {*PACKAGES, *BESIDE}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*file.copied()} <= allowed


def test_the_image_runs_as_nobody_in_particular_without_what_installs(file: Dockerfile) -> None:
    assert file.texts("USER") == [f"{USER}:{USER}"]
    (prepared,) = file.texts("RUN")
    assert "pip uninstall --yes" in prepared
    assert re.search(rf"useradd --uid {USER} .*--no-create-home", prepared)
    assert file.texts("COPY") == [f"--from=build {PLACE} {PLACE}"]
    first, last = (stage[0].text.split()[0] for stage in file.stages)
    assert first == last  # an environment goes with the Python that it was made by


def test_it_names_its_version_and_only_variables_that_are_read(file: Dockerfile) -> None:
    assert file.variables("LABEL")["org.opencontainers.image.version"] == __version__
    known = {variable(name) for name in Settings.model_fields}
    assert {name for name in file.variables() if name.startswith("MOSA_")} <= known


def test_everything_that_is_written_goes_below_one_folder(file: Dockerfile) -> None:
    found = file.variables()
    assert all(fnmatch(found[name], "/tmp*") for name in ("HOME", "TMPDIR", "BENTOML_HOME"))


def test_the_images_differ_in_their_extras_and_their_gpu() -> None:
    cpu, cuda = map(Dockerfile.read, DOCKERFILES)
    assert {**cuda.variables(), **cpu.variables()} == cuda.variables()
    steps = [file.texts("RUN", 0)[0] for file in (cpu, cuda)]
    extras = [re.findall(r"'\.\[(.+)\]'", step)[0] for step in steps]
    assert extras == ["serve-cpu,s3,heif,otel", "serve,cuda,s3,heif,otel"]
    assert steps[0].replace(extras[0], "") == steps[1].replace(extras[1], "")


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'


def on_read_only_root(command: list[str], writable: Path) -> list[str]:
    """The command with mounts of its own, so that it writes to one folder alone; as it is where that is forbidden."""
    own = ["unshare", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        return command
    return [*own, "sh", "-c", READ_ONLY, str(writable), *command]


@contextmanager
def started(command: list[str], log: Path, writable: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that may write to one folder alone."""
    kept = {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS") if name in os.environ}
    with log.open("wb") as output:
        line = on_read_only_root(command, writable)
        process = subprocess.Popen(line, stdout=output, stderr=output, cwd="/", env=kept | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_its_install_step_makes_an_environment_that_serves_on_a_read_only_root(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path
) -> None:
    file, place = Dockerfile.read("Dockerfile"), tmp_path
    (tmp_path / "source").mkdir()
    commands = file.install(place / "mosa", tmp_path / "source")
    assert not [*commands.glob("pip*")]
    assert not [*(place / "mosa").glob("lib/*/site-packages/torch")]
    scratch, store = place / "tmp", place / "store"
    scratch.mkdir()
    shutil.copytree(maker.root, store)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    moved = {"/tmp": str(scratch), PLACE: str(place / "mosa"), "$PATH": os.defpath, "/store": str(store)}
    environment = {name: replaced(value, moved) for name, value in file.variables().items()}
    entry = [str(commands / word) if word == "mosa" else word for word in file.command("ENTRYPOINT")]
    check = [replaced(word, {"3000": port}) for word in file.command("HEALTHCHECK")]
    check[0] = str(commands / check[0])
    log = tmp_path / "log"
    with started([*entry, "--host", "127.0.0.1", "--port", port], log, scratch, **environment) as process:
        end = time.monotonic() + 120
        while subprocess.run(check, capture_output=True, check=False).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/classify", files={"image": maker.images[0]}, data={"task": "birds"}, timeout=60
        )
        assert answer.json()["predictions"][0]["label"] == "class-0"
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0
    assert "Traceback" not in log.read_text()
    assert process.returncode == 0


def replaced(text: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text
