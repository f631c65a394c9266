"""`mosa score` on a Ray cluster: the same rows, whatever is killed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.settings import variable
from tests.support.ray_cluster import environment, running, started
from tests.support.score import DEADLY, SETTINGS, deadly, files, rows, run, unreadable, write_tar
from tests.support.tasks import TaskMaker, picture
from tests.support.waiting import wait_for
from tests.support.walker import ROOT

pytestmark = pytest.mark.slow

COUNT, SHARD = 240, 20

MOSA = (sys.executable, "-c", "from mosa_deploy.cli import main; main()")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster whose processes die at an image of the size `DEADLY`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(deadly(tmp_path_factory.mktemp("cluster") / "path"))
        with started() as address:
            yield address


@pytest.fixture
def images(maker: TaskMaker, tmp_path: Path) -> Path:
    """A folder with tar files of images, one of which is cut short, and one of which has a bad image and a text."""
    contents = {f"{i:03d}.png": maker.images[i % len(maker.images)] for i in range(COUNT)}
    names = list(contents)
    for start in range(0, COUNT, SHARD):
        write_tar(
            tmp_path / "tars" / f"{start:03d}.tar", {name: contents[name] for name in names[start : start + SHARD]}
        )
    write_tar(
        tmp_path / "tars" / "bad.tar", {"bad.jpg": b"no image", "labels.json": b"{}", "good.png": maker.images[0]}
    )
    cut = tmp_path / "tars" / "000.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    return tmp_path / "tars"


def command_of(maker: TaskMaker, images: Path, out: Path, cluster: str) -> tuple[list[str], dict[str, str]]:
    """The command line that scores on the cluster, and its variables."""
    given = ["--store", str(maker.root), "--tasks", "birds,fields", "--images", str(images), "--out", str(out)]
    variables = environment() | {variable(name): str(value) for name, value in SETTINGS.items()}
    return [*MOSA, "score", *given, "--ray", cluster], variables


def test_a_cluster_gives_the_rows_of_one_machine_when_a_worker_and_the_driver_are_killed(
    cluster: str, maker: TaskMaker, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command, variables = command_of(maker, images, out, cluster)
    with subprocess.Popen(command, cwd=ROOT, env=variables) as driver:
        try:
            wait_for(lambda: len(files(out)) > 1)
            worker, *_ = running("ray::MapWorker")
            worker.kill()
            wait_for(lambda: len(files(out)) > 3)
        finally:
            driver.kill()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith("error: 1 of 13 shards have no answers: ")
    assert "000.tar is cut short or damaged" in error
    assert "left out as no images: 1 .json" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [file for file, _ in unreadable(out)] == ["bad.tar/bad.jpg"]
    (images / "000.tar").unlink()
    run(maker, images, tmp_path / "here")
    assert rows(out) == rows(tmp_path / "here")


def test_a_shard_on_which_processes_die_is_given_up_and_tried_again_by_the_same_command(
    cluster: str, maker: TaskMaker, tmp_path: Path
) -> None:
    tars, out = tmp_path / "tars", tmp_path / "out"
    for name in ("a", "c"):
        write_tar(tars / f"{name}.tar", {f"{name}.png": maker.images[0]})
    write_tar(tars / "b.tar", {"good.png": maker.images[1], "bad.png": picture(size=DEADLY)})
    command, variables = command_of(maker, tars, out, cluster)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    reason = "b.tar.parquet: the process that answers it has died 3 times, perhaps for want of memory or of an image: "
    assert error.startswith(f"error: 1 of 3 shards have no answers: {reason}")
    assert files(out) == ["a.tar.parquet", "c.tar.parquet"]
    assert not (out / ".begun").exists()
    write_tar(tars / "b.tar", {"good.png": maker.images[1]})
    subprocess.run(command, cwd=ROOT, env=variables, timeout=600, check=True)
    assert files(out) == ["a.tar.parquet", "b.tar.parquet", "c.tar.parquet"]
