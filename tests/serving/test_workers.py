"""Several workers, one of which infers."""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.errors import ConfigError
from serving.leader import WorkerRendezvous
from tests.support.app import ADMIN
from tests.support.service import PROC, Server, serve
from tests.support.tasks import TaskMaker


@pytest.fixture(scope="module")
def server(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("workers")
    shutil.copytree(maker.root, folder / "artifacts")
    with serve(folder / "artifacts", folder, admin_keys="root-key", threads=1, workers=2, max_batch=8) as server:
        server.wait_until("ready")
        yield server


def leader(server: Server) -> int:
    """The worker that holds the lock."""
    for worker in server.workers():
        for link in (PROC / str(worker.pid) / "fd").iterdir():
            if str(link.readlink()).endswith("leader.lock"):
                return int(worker.pid)
    raise AssertionError("no worker has the lock")


def test_every_answer_after_an_upload_is_the_new_version_s_whatever_worker_gives_it(
    server: Server, maker: TaskMaker
) -> None:
    for turn in (5, 6):
        archive = maker.make("birds", turn)
        put = httpx.put(f"{server.address}/v1/tasks/birds", content=archive.pack(), headers=ADMIN, timeout=60)
        assert put.status_code == 200
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: server.classify("birds", maker.images[i % 16]), range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["bundle"] for answer in answers} == {archive.bundle().digest}
        tops = [answer.json()["predictions"][0]["label"] for answer in answers]
        assert tops == [f"class-{i % 16 + turn}" for i in range(200)]


def test_two_workers_share_the_requests_and_one_has_the_lock(server: Server, maker: TaskMaker) -> None:
    workers = [worker.pid for worker in server.workers()]
    assert len(workers) == 2
    assert leader(server) in workers


def test_several_tasks_of_one_image_and_faults_come_through(server: Server, maker: TaskMaker) -> None:
    for _ in range(8):
        answer = httpx.post(
            f"{server.address}/classify",
            files={"image": maker.images[3]},
            data={"tasks": "cracks,fields,dogs,fields.b", "top_k": "1"},
            timeout=30,
        )
        results = answer.json()["results"]
        assert [each["predictions"][0]["label"] if "predictions" in each else each["status"] for each in results] == [
            "class-4",
            "class-5",
            404,
            "class-6",
        ]
        assert server.classify("cracks", b"text").status_code == 415
        assert server.classify("dogs", maker.images[0]).status_code == 404
        assert httpx.delete(f"{server.address}/v1/tasks/dogs", headers=ADMIN, timeout=30).status_code == 404


def test_when_the_one_that_infers_is_killed_another_takes_its_place(server: Server, maker: TaskMaker) -> None:
    before = leader(server)
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + 60
    good = 0
    while good < 20 and time.monotonic() < end:
        try:
            answer = server.classify("cracks", maker.images[1])
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            assert "retry-after" in answer.headers
            time.sleep(0.1)
        else:
            assert answer.json()["predictions"][0]["label"] == "class-2"
            good += 1
    assert good == 20
    assert leader(server) != before


def test_the_meeting_place_of_another_user_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = WorkerRendezvous.of_siblings()
    lock = place.claim()
    assert lock is not None
    assert WorkerRendezvous.of_siblings().claim() is None
    lock.close()
    again = place.claim()
    assert again is not None
    again.close()
    place.folder.chmod(0o755)
    with pytest.raises(ConfigError, match="belongs to someone else"):
        WorkerRendezvous.of_siblings()
