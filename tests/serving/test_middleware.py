"""Bounds and keys, by raw requests where a client would be too polite."""

import asyncio
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message

from serving.middleware import LimitsMiddleware
from serving.settings import Settings
from tests.support.app import ADMIN, backend_of, running
from tests.support.tasks import picture


def classify(client: TestClient, **headers: str) -> Any:
    return client.post("/classify", files={"image": picture()}, data={"task": "birds"}, headers=headers)


def test_keys_are_asked_for_where_they_are_set_and_an_admin_may_ask_too(copied: Path) -> None:
    with running(copied, api_keys="one,two", admin_keys="root-key") as client:
        assert classify(client).status_code == 401
        assert classify(client).headers["www-authenticate"] == "Bearer"
        assert classify(client, authorization="Bearer three").status_code == 401
        assert classify(client, authorization="Basic two").status_code == 401
        assert client.get("/v1/tasks").status_code == client.get("/v1/tasks/birds").status_code == 401
        for headers in ({"authorization": "Bearer two"}, {"authorization": "bearer one"}, {"x-api-key": "two"}, ADMIN):
            assert classify(client, **headers).status_code == 200
        assert client.delete("/v1/tasks/birds", headers={"x-api-key": "two"}).status_code == 403
        assert client.get("/v1/tasks/birds", headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/tasks/birds"),
        ("DELETE", "/v1/tasks/birds"),
        ("POST", "/v1/tasks/birds/pin"),
        ("POST", "/v1/tasks/birds/rollback"),
    ],
)
def test_without_an_admin_s_key_set_no_change_is_taken_whatever_is_sent(
    client: TestClient, method: str, path: str
) -> None:
    for headers in ({}, {"authorization": "Bearer "}, {"x-api-key": ""}, ADMIN):
        response = client.request(method, path, headers=headers, content=b"x")
        assert (response.status_code, "MOSA_ADMIN_KEYS" in response.json()["detail"]) == (403, True)


def test_a_key_never_reaches_the_log(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(copied, api_keys="one,two", admin_keys="root-key") as client, caplog.at_level("DEBUG"):
        classify(client, authorization="Bearer two")
        classify(client, authorization="Bearer wrong-key")
        client.delete("/v1/tasks/birds", headers=ADMIN)
    assert len([record for record in caplog.records if record.name == "mosa_deploy.requests"]) == 3
    assert not any(key in caplog.text for key in ("two", "wrong-key", "root-key"))


@pytest.mark.parametrize("path", ["/classify", "/v1/tasks", "/v1/tasks/birds", "/v1/tasks/birds/pin", "/metrics", "/"])
@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "application/x-pickle", "Application/PICKLE"])
def test_a_pickle_is_refused_on_every_route(client: TestClient, path: str, kind: str) -> None:
    for method in ("POST", "PUT", "GET"):
        response = client.request(method, path, content=pickle.dumps("x"), headers={"content-type": kind})
        assert response.status_code == 415
        assert "pickles are not read" in response.json()["detail"]


def test_a_body_above_the_limit_is_refused_whatever_its_head_says(copied: Path) -> None:
    with running(copied, max_upload=50_000, admin_keys="root-key") as client:
        stated = client.post("/classify", files={"image": bytes(60_000)}, data={"task": "birds"})
        assert (stated.status_code, stated.json()["detail"][:44]) == (
            413,
            "the body has more than 50000 bytes, which is",
        )
        chunked = client.put("/v1/tasks/birds", content=iter([bytes(30_000)] * 3), headers=ADMIN)
        assert chunked.status_code == 413
        assert classify(client).status_code == 200


def test_too_many_answers_at_once_are_refused(copied: Path) -> None:
    with running(copied, max_images=3) as client:
        files = [("image", ("a.png", picture()))] * 4
        response = client.post("/classify", files=files, data={"task": "birds"})
        assert (response.status_code, response.json()["detail"]) == (
            400,
            "4 answers are asked for at once, 3 are given: send less at once",
        )
        assert client.post("/classify", files=files[:2], data={"tasks": "birds,cracks"}).status_code == 400


def test_an_image_above_the_limit_is_refused_before_it_is_decoded(copied: Path) -> None:
    with running(copied, max_pixels=48 * 40 - 1) as client:
        response = classify(client)
        assert (response.status_code, response.json()["detail"]) == (
            400,
            "upload: 48 x 40 pixels are more than 1919: send a smaller image",
        )


def test_a_full_queue_and_a_passed_deadline_are_told_with_a_time_to_come_back(copied: Path) -> None:
    with running(copied, queue=2, deadline_s=0.3) as client:
        batcher, gate = backend_of(client).batcher, threading.Event()
        batcher.call(lambda: gate.wait(10))
        files = [("image", ("a.png", picture(seed))) for seed in range(3)]
        full = client.post("/classify", files=files, data={"task": "birds"})
        assert [each["status"] for each in full.json()["results"]] == [503] * 3
        alone = client.post("/classify", files=files[:1], data={"task": "birds"})
        assert (alone.status_code, alone.json()["detail"][:24]) == (504, "no answer within 0.3 s: ")
        assert batcher.waiting <= 1
        gate.set()


def test_a_gpu_that_is_lost_makes_the_service_dead(copied: Path) -> None:
    with running(copied) as client:
        backend = backend_of(client)
        assert asyncio.run(backend.health()).alive
        backend.batcher.broken = "CUDA error 719"
        health = asyncio.run(backend.health())
        assert (health.alive, health.ready) == (False, False)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


def through(
    guard: LimitsMiddleware, messages: list[Message], headers: Mapping[str, str], pause: float = 0
) -> list[Message]:
    """Send messages, each after a pause, through the guard; what it answers."""
    sent: list[Message] = []
    left = iter(messages)

    async def receive() -> Message:
        await asyncio.sleep(pause)
        return next(left)

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive, send))
    return sent


def part(content: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_in_parts_arrives_whole() -> None:
    answer = through(LimitsMiddleware(_app, Settings()), [part(b"abc"), part(b"de"), part(b"", more=False)], {})
    assert answer[1]["body"] == b"5"


def test_a_slow_body_is_given_up() -> None:
    answer = through(LimitsMiddleware(_app, Settings(body_s=0.2)), [part(b"x")] * 100, {}, pause=0.05)
    assert answer[0]["status"] == 408
    assert b"did not arrive within 0.2 s" in answer[1]["body"]


@pytest.mark.parametrize("begun", [False, True])
def test_what_takes_longer_than_a_change_may_is_given_up(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    monkeypatch.setattr("serving.middleware.CHANGE_SECONDS", 0.1)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    answer = through(LimitsMiddleware(endless, Settings(deadline_s=0.2)), [part(b"", more=False)], {})
    assert [message.get("status") for message in answer] == ([200] if begun else [504, None])
    assert begun or b"no answer within 0.3 s; a change that has begun goes on" in answer[1]["body"]


def test_a_sender_who_leaves_gets_nothing() -> None:
    assert through(LimitsMiddleware(_app, Settings()), [part(b"x"), {"type": "http.disconnect"}], {}) == []


@pytest.mark.parametrize("length", ["-1", "1e3", "ten", "\xb2", "9" * 30])
def test_an_impossible_length_is_refused(length: str) -> None:
    answer = through(LimitsMiddleware(_app, Settings()), [part(b"x", more=False)], {"content-length": length})
    assert answer[0]["status"] == 400


def test_more_requests_than_may_be_in_work_are_refused_with_a_time_to_come_back() -> None:
    guard = LimitsMiddleware(_app, Settings(requests=2))
    guard.in_flight = 2
    answer = through(guard, [part(b"x", more=False)], {})
    assert answer[0]["status"] == 503
    assert (b"retry-after", b"1") in answer[0]["headers"]
    assert guard.in_flight == 2


@pytest.mark.parametrize("given", ["a b", "x" * 65, "", "line\\nbreak", "é"])
def test_a_request_s_own_id_is_taken_only_if_it_is_plain(given: str) -> None:
    answer = through(LimitsMiddleware(_app, Settings()), [part(b"", more=False)], {"x-request-id": given})
    ids = [value for name, value in answer[0]["headers"] if name == b"x-request-id"]
    assert len(ids) == 1
    assert len(ids[0]) == 32
