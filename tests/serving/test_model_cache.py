"""Who is loaded, who goes, and what holds while versions come and go beneath requests."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import Decision
from serving.errors import RequestError
from serving.loaded_task import LoadedTask
from serving.registry import Entry
from serving.store import Version
from tests.support.app import backend_of, changing, put, running, top
from tests.support.tasks import TaskMaker, picture


def active(client: TestClient) -> list[str]:
    return [entry["task"] for entry in client.get("/v1/tasks").json()["tasks"] if entry["state"] == "active"]


def test_the_least_recently_asked_goes_and_comes_back(copied: Path, maker: TaskMaker) -> None:
    with running(copied, active=2, prefetch=0) as client:
        assert active(client) == []
        for task in ("birds", "cracks", "fields"):
            top(client, task, maker.images[0])
        assert active(client) == ["cracks", "fields"]
        assert top(client, "birds", maker.images[4])[0] == "class-4"
        assert active(client) == ["birds", "fields"]


def test_a_pinned_task_stays_until_it_is_let_go(copied: Path, maker: TaskMaker) -> None:
    with changing(copied, active=2, prefetch=0) as client:
        assert client.post("/v1/tasks/birds/pin").json()["pinned"]
        for task in ("cracks", "fields"):
            top(client, task, maker.images[0])
        assert active(client) == ["birds", "fields"]
        client.post("/v1/tasks/birds/pin", json={"pinned": False})
        top(client, "cracks", maker.images[0])
        assert active(client) == ["cracks", "fields"]


def test_where_all_are_pinned_no_other_task_is_loaded(copied: Path) -> None:
    with changing(copied, active=2, prefetch=0) as client:
        for task in ("cracks", "fields"):
            client.post(f"/v1/tasks/{task}/pin")
        full = client.post("/classify", files={"image": picture()}, data={"task": "birds"})
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    assert "pinned or in use" in full.json()["detail"]


def test_a_pinned_task_is_the_first_to_be_loaded_again(copied: Path) -> None:
    with changing(copied, prefetch=0) as client:
        client.post("/v1/tasks/cracks/pin")
    with running(copied, active=2, prefetch=1) as again:
        assert active(again) == ["cracks"]


def test_asking_makes_a_task_the_last_to_go(copied: Path, maker: TaskMaker) -> None:
    with running(copied, active=2, prefetch=0) as client:
        for task in ("birds", "cracks", "birds", "fields"):
            top(client, task, maker.images[0])
        assert active(client) == ["birds", "fields"]


def test_a_version_that_was_just_proved_keeps_its_place_until_requests_can_reach_it(copied: Path) -> None:
    with running(copied, active=1, prefetch=0) as client:
        registry = backend_of(client).registry
        residents, store = registry.cache, registry.store
        birds, cracks = (
            (
                store.version(name, registry.entry(name).decision.current or ""),
                store.archive(name, store.exported(name) or ""),
            )
            for name in ("birds", "cracks")
        )
        proved = residents.load(birds[0], birds[1].bundle(), "shared")
        with pytest.raises(RequestError, match="pinned or in use"):
            residents.load(cracks[0], cracks[1].bundle(), "shared")
        assert not proved.retired
        residents.release(proved)
        residents.release(residents.load(cracks[0], cracks[1].bundle(), "shared"))


def test_a_new_version_is_held_until_requests_can_reach_it(
    admin: TestClient, newer: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, users = backend_of(admin).registry, []
    swap = registry.swap

    def watched(entry: Entry, version: Version | None, loaded: LoadedTask | None, decision: Decision) -> None:
        users.append(loaded.users if loaded else 0)
        swap(entry, version, loaded, decision)

    monkeypatch.setattr(registry, "swap", watched)
    put(admin, "birds", newer)
    assert users == [1]


def test_a_load_that_ends_after_a_replacement_does_not_bring_the_old_version_back(
    copied: Path, maker: TaskMaker, newer: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with changing(copied, prefetch=0) as client:
        registry, go = backend_of(client).registry, threading.Event()
        load = registry.cache.load

        def late(version: Version, *rest: Any) -> LoadedTask:
            loaded = load(version, *rest)
            if version.key != newer.key:
                go.wait(30)
            return loaded

        monkeypatch.setattr(registry.cache, "load", late)
        loading = registry.hold("birds")
        assert isinstance(loading, Future)
        assert put(client, "birds", newer).status_code == 200
        go.set()
        loading.result(30)
        assert top(client, "birds", maker.images[0]) == ("class-9", newer.bundle().digest)


def test_a_request_in_flight_finishes_on_the_version_it_began_with(
    admin: TestClient, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    registry = backend_of(admin).registry
    held = registry.acquire("birds")
    put(admin, "birds", newer)
    put(admin, "moths", maker.make("moths", 1))
    assert held.retired
    item = held.item(held.version.record.preprocess.read(maker.images[6]), deadline=float("inf"))
    backend_of(admin).batcher.submit([item])
    (row,) = held.probabilities(item.future.result(5)[None])
    assert row.argmax() == 6
    residents = registry.cache
    before = len(residents)
    registry.release(held)
    assert len(residents) == before - 1
    assert top(admin, "birds", maker.images[6]) == ("class-15", newer.bundle().digest)


def test_many_who_ask_for_a_task_that_is_not_loaded_wait_for_one_load(copied: Path) -> None:
    with running(copied, prefetch=0) as client:
        registry = backend_of(client).registry
        loads: list[str] = []
        registry.count = loads.append
        found = []
        threads = [threading.Thread(target=lambda: found.append(registry.acquire("birds"))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 16
        assert len(set(map(id, found))) == 1
        assert loads == ["load"]
