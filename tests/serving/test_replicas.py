"""Several services on one store: what one changes the others serve, and of two changes at once one is refused."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import Decision
from mosa_deploy.bundles.store_layout import decision_file
from mosa_deploy.errors import StoreAccessError
from serving import follower
from serving.decisions import KEPT, Decisions
from serving.errors import RequestError
from serving.storage import LocalFiles, RemoteFiles, open_files
from tests.support.app import backend_of, changing, put, top, warnings
from tests.support.tasks import TaskMaker


@pytest.fixture
def other(admin: TestClient, copied: Path) -> Iterator[TestClient]:
    """A second service on the store of `admin`."""
    with changing(copied) as client:
        yield client


def follow(client: TestClient) -> None:
    """Let a service look at once, without its pause."""
    backend_of(client).follower.look()


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalFiles | RemoteFiles]:
    """An empty store, in a folder and behind a URL."""
    with closing(open_files(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")) as opened:
        yield opened


def test_of_two_services_one_writes_the_next_decision(files: LocalFiles | RemoteFiles) -> None:
    first, second = Decisions(files), Decisions(files)
    first.write("birds", Decision(current="a"))
    with pytest.raises(RequestError, match=r"^another service has changed 'birds' meanwhile") as caught:
        second.write("birds", Decision(current="b"))
    assert caught.value.status == 409
    assert second.changed() == ["birds"]
    assert second.read("birds") == first.read("birds") == Decision(current="a")
    second.write("birds", Decision(current="b"))
    assert (first.changed(), second.changed()) == (["birds"], [])
    assert files.names("decisions") == ["birds@1.json", "birds@2.json"]


@pytest.mark.parametrize("missed", [1, 3, 4, 9])
def test_a_service_that_has_missed_several_decisions_writes_none_of_those_that_were_removed(
    files: LocalFiles | RemoteFiles, missed: int
) -> None:
    late, writer = Decisions(files), Decisions(files)
    writer.write("birds", Decision(current="a"))
    late.read("birds")
    for _ in range(missed):
        writer.write("birds", Decision(current="b"))
    with pytest.raises(RequestError, match=r"^another service has changed 'birds' meanwhile"):
        late.write("birds", Decision(current="c"))
    assert len(files.names("decisions")) == min(missed + 1, KEPT)
    assert late.read("birds") == Decision(current="b")
    late.write("birds", Decision(current="c"))
    assert writer.read("birds") == Decision(current="c")


def test_a_decision_whose_request_was_repeated_is_the_service_s_own(files: LocalFiles | RemoteFiles) -> None:
    decision, decisions = Decision(current="a"), Decisions(files)
    files.write(decision_file("birds", 1), decision.model_dump_json(indent=2).encode() + b"\n")
    decisions.write("birds", decision)
    assert decisions.changed() == []


def test_a_decision_of_a_release_that_did_not_count_is_followed_by_the_first(files: LocalFiles | RemoteFiles) -> None:
    files.write(decision_file("birds", 0), Decision(current="a").model_dump_json().encode())
    decisions = Decisions(files)
    assert decisions.read("birds") == Decision(current="a")
    decisions.write("birds", Decision(current="b"))
    assert files.names("decisions") == ["birds@1.json"]


def test_a_decision_that_is_replaced_while_it_is_read_is_read_anew(files: LocalFiles | RemoteFiles) -> None:
    writer, reader = Decisions(files), Decisions(files)
    for key in "abcde":
        writer.write("birds", Decision(current=key))
    assert reader.read("birds", revision=1) == Decision(current="e")


def test_a_change_is_served_by_the_other_within_five_seconds(
    admin: TestClient, other: TestClient, maker: TaskMaker, newer: Archive
) -> None:
    assert top(other, "birds", maker.images[0])[0] == "class-0"
    put(admin, "birds", newer)
    end = time.monotonic() + 5
    while top(other, "birds", maker.images[0]) != ("class-9", newer.bundle().digest):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_new_removed_and_pinned_tasks_are_followed(
    admin: TestClient, other: TestClient, maker: TaskMaker, newer: Archive
) -> None:
    put(admin, "moths", maker.make("moths", 20))
    admin.post("/v1/tasks/birds/pin")
    follow(other)
    assert top(other, "moths", maker.images[2])[0] == "class-22"
    assert other.get("/v1/tasks/birds").json()["pinned"]
    assert admin.delete("/v1/tasks/moths").is_success
    follow(other)
    assert other.get("/v1/tasks/moths").status_code == 404
    assert other.post("/v1/tasks/moths/rollback").is_success


def test_a_rollback_goes_from_what_the_other_decided(
    admin: TestClient, other: TestClient, archives: Mapping[str, Archive], newer: Archive
) -> None:
    put(admin, "birds", newer)
    follow(other)
    assert other.post("/v1/tasks/birds/rollback").json()["bundle"] == archives["birds"].bundle().digest
    follow(admin)
    assert admin.get("/v1/tasks/birds").json()["bundle"] == archives["birds"].bundle().digest


def test_a_change_that_comes_second_is_refused_and_changes_nothing(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SECONDS", 1000.0)
    with changing(copied) as late:
        put(admin, "birds", newer)
        answer = late.put("/v1/tasks/birds", content=maker.make("birds", 8).pack())
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("another service has changed 'birds' meanwhile: look at GET /v1")
        assert top(late, "birds", maker.images[0])[0] == "class-0"
        follow(late)
        assert top(late, "birds", maker.images[0])[0] == "class-9"


def test_what_cannot_be_proved_here_is_refused_with_its_reason(
    admin: TestClient, other: TestClient, copied: Path, newer: Archive
) -> None:
    put(admin, "birds", newer)
    (copied / "uploads" / f"{newer.key}.mosa").unlink()
    follow(other)
    info = other.get("/v1/tasks/birds").json()
    assert info["state"] == "refused"
    assert "no such file; upload the task again" in info["reason"]


def test_what_could_not_be_read_whole_is_followed_at_the_next_look(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SECONDS", 1000.0)
    with changing(copied) as late:
        put(admin, "birds", newer)
        version = copied / "uploads" / f"{newer.key}.mosa"
        aside = version.rename(copied / "aside")
        version.mkdir()  # a folder cannot be read, which says nothing of the version
        with pytest.raises(
            StoreAccessError, match=r"\.mosa cannot be read \(Is a directory\): see that the store is up"
        ):
            follow(late)
        assert top(late, "birds", maker.images[0])[0] == "class-0"
        version.rmdir()
        aside.rename(version)
        follow(late)
        assert top(late, "birds", maker.images[0])[0] == "class-9"


def test_a_task_that_is_not_loaded_while_the_store_is_away_answers_when_it_is_back(
    copied: Path, maker: TaskMaker
) -> None:
    with changing(copied, prefetch=0) as client:
        tensors = copied / "tasks" / "birds" / "adapter.safetensors"
        aside = tensors.rename(copied / "aside")
        tensors.mkdir()
        refused = client.post("/classify", files={"image": maker.images[0]}, data={"task": "birds"})
        assert refused.status_code == 503
        assert "cannot be read (Is a directory)" in refused.json()["detail"]
        tensors.rmdir()
        aside.rename(tensors)
        assert top(client, "birds", maker.images[0])[0] == "class-0"


def test_a_store_that_is_away_is_one_warning(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with changing(copied) as client:
        own = backend_of(client).follower
        own.close()
        with closing(RemoteFiles("http://127.0.0.1:1/store")) as away:
            own.decisions.files = away
            for _ in range(3):
                own.try_look()
    assert len([text for text in warnings(caplog) if "changes of other services wait" in text]) == 1
