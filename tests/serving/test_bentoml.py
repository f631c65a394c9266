"""The service as it is deployed: `bentoml serve` in a process of its own, asked over HTTP."""

import asyncio
import io
import json
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from mosa_deploy.bundles.archive import Archive
from tests.support.app import ADMIN, scores
from tests.support.load import Ask, closed
from tests.support.service import PROC, Server, serve
from tests.support.tasks import TaskMaker, picture
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def server(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of all tasks, and of one whose record was altered."""
    folder = tmp_path_factory.mktemp("bentoml")
    artifacts = Path(shutil.copytree(maker.root, folder / "artifacts"))
    record = artifacts / "tasks" / "fields.b" / "adapter.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "temperature": 9.0}))
    with serve(artifacts, folder, admin_keys="root-key", threads="1") as server:
        server.wait_until("ready")
        yield server


def test_one_server_answers_two_tasks_each_by_its_own_bundle(server: Server, archives: Mapping[str, Archive]) -> None:
    for task in ("birds", "fields"):
        response, bundle = server.classify(task, picture()), archives[task].bundle()
        assert response.json()["bundle"] == bundle.digest
        assert set(scores(response)) <= set(bundle.record.classes)
        assert len(scores(response)) == 5


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/livez", ""),
        ("/readyz", ""),
        ("/metrics", "# HELP mosa_requests"),
        ("/docs.json", '"/classify"'),
        ("/openapi.json", '"/v1/tasks/{name}/rollback"'),
        ("/v1/tasks", '"birds"'),
    ],
)
def test_what_an_operator_asks_is_answered(server: Server, path: str, text: str) -> None:
    response = httpx.get(f"{server.address}{path}", timeout=10)
    assert response.status_code == 200
    assert text in response.text


def test_32_requests_at_once_are_all_answered_by_their_own_task(server: Server, maker: TaskMaker) -> None:
    asked = [(i, task) for i in range(8) for task in ("birds", "cracks", "fields")] * 4
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda each: server.classify(each[1], maker.images[each[0]]), asked))
    assert {answer.status_code for answer in answers} == {200}
    for (i, task), answer in zip(asked, answers, strict=True):
        turned = {"birds": 0, "cracks": 1, "fields": 2}[task]
        assert next(iter(scores(answer))) == f"class-{i + turned}"


def test_faults_reach_the_sender_with_their_reason(server: Server) -> None:
    refused, unknown = server.classify("fields.b", picture()), server.classify("429", picture())
    assert (refused.status_code, unknown.status_code) == (503, 404)
    assert refused.json()["detail"].startswith("'fields.b': the shared graph misses its canary's probabilities")
    assert unknown.json()["detail"].startswith("unknown task '429'; known: birds")
    assert server.classify("birds", b"no image").status_code == 415


def test_a_task_is_added_replaced_and_removed_while_it_runs(server: Server, maker: TaskMaker) -> None:
    first, second = maker.make("moths", 3), maker.make("moths", 4)
    url = f"{server.address}/v1/tasks/moths"
    for archive, label in ((first, "class-3"), (second, "class-4")):
        assert httpx.put(url, content=archive.pack(), headers=ADMIN, timeout=30).status_code == 200
        answer = server.classify("moths", maker.images[0])
        assert next(iter(scores(answer))) == label
        assert answer.json()["bundle"] == archive.bundle().digest
    assert httpx.put(url, content=first.pack(), timeout=30).status_code == 401
    assert httpx.delete(url, headers=ADMIN, timeout=30).status_code == 204
    assert server.classify("moths", picture()).status_code == 404


def test_the_log_says_what_was_set_and_which_task_is_not_served_and_has_a_line_a_request(server: Server) -> None:
    name = "my-own.id_1"
    files = {"image": ("some.png", picture())}
    answer = httpx.post(
        f"{server.address}/classify", files=files, data={"task": "birds"}, headers={"x-request-id": name}
    )
    assert answer.headers["x-request-id"] == name
    text = server.log.read_text()
    assert "MOSA_MAX_BATCH=0" in text
    assert "root-key" not in text
    assert "not serving fields.b: 'fields.b': the shared graph misses its canary's probabilities" in text
    # The line is written after the answer was sent.
    wait_for(lambda: any(line["id"] == name for line in server.lines()))
    (line,) = [line for line in server.lines() if line["id"] == name]
    assert line.keys() >= {"method", "route", "status", "task", "digest", "lane", "decode_ms", "infer_ms", "ms"}
    assert (line["route"], line["status"], line["task"], line["lane"]) == ("/classify", 200, ["birds"], ["shared"])


def test_a_stranger_s_paths_and_tasks_make_no_series(server: Server) -> None:
    for i in range(5):
        httpx.get(f"{server.address}/nowhere/{i}", timeout=10)
        server.classify(f"unknown-{i}", picture())
    text = httpx.get(f"{server.address}/metrics", timeout=10).text
    assert "nowhere" not in text
    assert "unknown-" not in text
    assert 'mosa_requests_total{method="POST",route="/classify",status="404"}' in text
    gauges = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(("mosa_tasks", "mosa_queue_d")))
    assert float(gauges["mosa_tasks_active"]) >= 1
    assert float(gauges["mosa_queue_depth"]) == 0


@pytest.mark.skipif(not (PROC / "self" / "maps").exists(), reason="no /proc here to look into the server's memory")
def test_what_was_answered_leaves_no_memory(server: Server) -> None:
    asks = [Ask(b"", "application/octet-stream", "moths", 0)] * 500
    asyncio.run(closed(server.address, asks, in_flight=8))
    before = server.memory()
    for _ in range(6):
        asyncio.run(closed(server.address, asks, in_flight=8))
    # A request that is kept until a minute is over takes 9 KB, 3,000 of them 27 MB.
    assert server.memory() - before < 6e6


def test_no_process_of_the_server_has_loaded_torch(server: Server) -> None:
    maps = [(PROC / str(each.pid) / "maps").read_text() for each in server.family()]
    assert any("onnxruntime" in text for text in maps)
    assert not any("libtorch" in text for text in maps)


def test_an_impossible_setting_stops_the_start_in_one_line(tmp_path: Path) -> None:
    with serve(tmp_path, tmp_path, queue="many") as server:
        server.wait_until("error: MOSA_QUEUE=many: ")
        assert server.process.wait(30) != 0
        assert "Traceback" not in server.log.read_text()


def classify_slowly(server: Server, count: int) -> httpx.Response:
    """Classify `count` images that each take more than half a second to decode."""
    content = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(content, "png")
    files = [("image", (f"{i}.png", content.getvalue())) for i in range(count)]
    return httpx.post(f"{server.address}/classify", files=files, data={"task": "birds"}, timeout=60)


def wait_until_begun(server: Server, requests: int) -> None:
    """Wait until so many requests are in work, beside the one that asks."""
    for _ in range(200):
        text = httpx.get(f"{server.address}/metrics", timeout=30).text
        found = re.search(r"^mosa_requests_in_flight (\S+)", text, flags=re.MULTILINE)
        if found and float(found[1]) > requests:
            return
        time.sleep(0.02)
    raise AssertionError(f"{requests} requests are never in work at once")


def test_told_to_stop_it_answers_what_it_has_begun(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path
) -> None:
    with serve(maker.root, tmp_path, prefetch=1, threads="1", decoders="1") as server:
        server.wait_until("ready")
        with ThreadPoolExecutor(9) as pool:
            slow = pool.submit(classify_slowly, server, 4)
            wait_until_begun(server, 1)
            asked = [pool.submit(server.classify, "birds", maker.images[i]) for i in range(8)]
            wait_until_begun(server, 9)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until_refused()
            assert not any(each.done() for each in asked)
            answers = [each.result() for each in asked]
            assert len(slow.result().json()["results"]) == 4
        assert [next(iter(scores(answer))) for answer in answers] == [f"class-{i}" for i in range(8)]
        assert server.process.wait(30) == 0


def test_told_to_stop_it_waits_no_longer_than_it_was_told(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path
) -> None:
    with serve(maker.root, tmp_path, prefetch=1, decoders="1", deadline_s="60", drain_s="1.5") as server:
        server.wait_until("ready")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(classify_slowly, server, 16)
            wait_until_begun(server, 1)
            server.process.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 500
        assert server.process.wait(30) == 0
