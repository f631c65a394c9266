"""Three services on one object store, as they are deployed: tasks change under load, and the store fails."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from mosa_deploy.bundles.archive import Archive
from tests.support.object_store import ObjectStore, object_store
from tests.support.replicas import FOLLOW_SECONDS, Change, History, Load, ask_change, wait_logged, wait_served
from tests.support.service import KEY, Server, serve
from tests.support.tasks import TaskMaker

pytestmark = pytest.mark.slow

TASKS = {"birds": ("mosa", 0), "cracks": ("mosa", 1), "fields": ("linear", 2), "grains": ("lora", 4)}
"""Their methods, and by how many places the maker's versions turn the classes."""


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def url(objects: ObjectStore, maker: TaskMaker, archives: Mapping[str, Archive]) -> str:
    return objects.upload(maker.root, "store")


@pytest.fixture(scope="module")
def replicas(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(f"replica-{i}") for i in range(3)]
        servers = [
            stack.enter_context(serve(url, folder, admin_keys=KEY, threads=1, max_batch=8)) for folder in folders
        ]
        for server in servers:
            server.wait_until("ready")
        yield servers


@pytest.fixture(scope="module")
def history(archives: Mapping[str, Archive]) -> History:
    """What has been served so far."""
    found = History()
    for task, (_, turn) in TASKS.items():
        found.add(Change(task, found.knows(archives[task], turn)))
    return found


def test_twenty_changes_under_load_are_all_answered_rightly_and_by_all_within_five_seconds(
    replicas: list[Server], maker: TaskMaker, history: History
) -> None:
    new = {(task, turn): maker.make(task, turn, method=method) for task, (method, _) in TASKS.items() for turn in NEW}
    digests = {key: history.knows(archive, key[1]) for key, archive in new.items()}

    def change(number: int, step: int, task: str) -> None:
        """One change of a task through one of the services, until all serve it."""
        service, (method, path, turn) = (number + step) % len(replicas), STEPS[step]
        content = new[task, turn].pack() if method == "PUT" else None
        start = time.monotonic()
        answer = ask_change(replicas[service], method, f"{task}{path}", content)
        assert answer.status_code == 200, answer.text
        done = Change(task, digests[task, turn], service, start, time.monotonic())
        if path != "/pin":
            history.add(done)
        wait_served(replicas, task, bundle=done.digest, pinned=step >= PINNED)

    with Load(replicas, [*TASKS], maker.images) as load, ThreadPoolExecutor(len(TASKS)) as pool:
        for step in range(len(STEPS)):
            for each in [pool.submit(change, i, step, task) for i, task in enumerate(TASKS)]:
                each.result()
    assert len(STEPS) * len(TASKS) == 20
    assert len(load.replies) > 500
    assert load.faults(history) == []
    lags = [history.lag(each, load.replies) for own in history.changes.values() for each in own[1:]]
    print(f"{len(load.replies)} answers, all right; a version was answered by all within {max(lags):.2f} s")
    assert max(lags) < FOLLOW_SECONDS


NEW = (10, 11, 12)
STEPS = (("PUT", "", 10), ("PUT", "", 11), ("POST", "/rollback", 10), ("POST", "/pin", 10), ("PUT", "", 12))
"""Method, path, and what is served then."""
PINNED = 3
"""The step from which on a task is pinned."""


def test_of_two_changes_at_the_same_time_one_is_refused_and_the_other_served_by_all(
    replicas: list[Server], maker: TaskMaker, history: History
) -> None:
    for turn in (20, 22, 24):
        pair = [maker.make("cracks", turn + i) for i in range(2)]
        with ThreadPoolExecutor(2) as pool:
            sent = [
                pool.submit(ask_change, replicas[i], "PUT", "cracks", archive.pack()) for i, archive in enumerate(pair)
            ]
            answers = [each.result() for each in sent]
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        won = pair[answers[1].status_code == 200].bundle().digest
        lost = next(answer for answer in answers if answer.status_code == 409)
        assert lost.json()["detail"].startswith("another service has changed 'cracks' meanwhile")
        wait_served(replicas, "cracks", bundle=won)
        for server in replicas:
            answer = server.classify("cracks", maker.images[0]).json()
            assert answer["bundle"] == won


def test_a_store_that_is_down_refuses_changes_in_one_line_and_nothing_else(
    objects: ObjectStore, url: str, replicas: list[Server], maker: TaskMaker
) -> None:
    lost, later = maker.make("moths", 5), maker.make("moths", 6)
    with Load(replicas, ["birds", "grains"], maker.images) as load:
        objects.tell("down")
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(started, url)
            refused = ask_change(replicas[0], "PUT", "moths", lost.pack())
            assert start.result() == (2, 1)
        # A look that began before the store went down, or that tries again, may not have failed yet.
        wait_logged(replicas[2], "changes of other services wait: s3://", 60)
        objects.tell("up")
        accepted = ask_change(replicas[1], "PUT", "moths", later.pack())
        # A service may be in the middle of a look that waits for the store.
        wait_served(replicas, "moths", 4 * FOLLOW_SECONDS, bundle=later.bundle().digest)
    assert_names_the_store(refused, url)
    assert accepted.status_code == 200, accepted.text
    assert {reply.status for _, reply in load.replies} == {200}


def test_a_store_that_is_slow_delays_changes_and_no_answers(
    objects: ObjectStore, url: str, replicas: list[Server], maker: TaskMaker
) -> None:
    with Load(replicas, ["birds", "grains"], maker.images) as load:
        objects.tell("delay 0.2")
        archive = maker.make("moths", 7)
        assert ask_change(replicas[0], "PUT", "moths", archive.pack()).status_code == 200
        wait_served(replicas, "moths", 4 * FOLLOW_SECONDS, bundle=archive.bundle().digest)
        objects.tell("delay 40")
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(started, url)
            refused = ask_change(replicas[1], "PUT", "moths", maker.make("moths", 8).pack())
            assert start.result() == (2, 1)
        objects.tell("delay 0")
    assert_names_the_store(refused, url)
    assert {reply.status for _, reply in load.replies} == {200}
    assert max(reply.seconds for _, reply in load.replies) < FOLLOW_SECONDS


def test_a_store_that_is_read_only_is_served_and_refuses_changes(
    objects: ObjectStore, url: str, maker: TaskMaker, tmp_path: Path
) -> None:
    objects.tell("readonly 1")
    with serve(url, tmp_path, admin_keys=KEY, threads=1) as server:
        server.wait_until("ready")
        assert server.classify("birds", maker.images[0]).status_code == 200
        for refused in (
            ask_change(server, "PUT", "birds", maker.make("birds", 9).pack()),
            ask_change(server, "POST", "birds/pin"),
            ask_change(server, "DELETE", "fields?force=true"),
        ):
            assert_names_the_store(refused, url)
            assert "Access Denied" in refused.json()["detail"]
        assert server.classify("fields", maker.images[0]).status_code == 200
    objects.tell("readonly 0")
    assert "Traceback" not in server.log.read_text()


def started(url: str) -> tuple[int, int]:
    """How a start on a store that does not answer ends: the exit code, and the number of lines that it prints."""
    command = [str(Path(sys.prefix, "bin", "mosa")), "serve", "--artifacts", url, "--host", "127.0.0.1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        command += ["--port", str(probe.getsockname()[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith(f"error: {url}/"), done.stderr
    return done.returncode, len(done.stderr.splitlines())


def assert_names_the_store(refused: httpx.Response, url: str) -> None:
    assert refused.status_code == 503, refused.text
    detail = refused.json()["detail"]
    assert detail.startswith(f"{url}/")
    assert detail.endswith((": see that the store is up, and that this service may read there", "may write there"))
