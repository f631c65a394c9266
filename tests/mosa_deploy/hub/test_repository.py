"""`mosa push` and `mosa pull` by huggingface_hub, against a hub on this machine."""

from pathlib import Path

import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import HubError
from mosa_deploy.hub.pull import pull_from
from mosa_deploy.hub.push import PushConfig, push_to
from mosa_deploy.hub.repository import HubRemote
from tests.support.fake_hub import TOKEN, FakeHub, FakeRepo

REPO = "ann/toy"
LIMIT = 1_000_000


def push(hub: FakeHub, run: Path, revision: str | None = None, token: str | None = TOKEN, private: bool = False) -> str:
    remote = HubRemote(REPO, revision, token, hub.endpoint)
    return push_to(remote, Archive.read(run), PushConfig(run, REPO, private=private))


def pull(hub: FakeHub, out: Path, revision: str | None = None, token: str | None = None) -> Path:
    return pull_from(HubRemote(REPO, revision, token, hub.endpoint), out, LIMIT)


def fault(hub: FakeHub, out: Path, revision: str | None = None, token: str | None = None) -> str:
    """Why nothing was pulled."""
    with pytest.raises(HubError) as caught:
        pull(hub, out, revision, token)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_pushed_is_pulled(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    place = push(hub, run)
    files = hub.repos[REPO].branches["main"]
    assert files.keys() == {"adapter.json", "adapter.safetensors", "README.md"}
    assert place.startswith(f"{hub.endpoint}/{REPO}, commit ")
    assert Bundle.load(pull(hub, tmp_path / "out")).digest == Bundle.load(run).digest


def test_a_branch_is_made_and_main_stays(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(hub, run, revision="v2")
    assert hub.repos[REPO].branches["main"] == {}
    assert "is no bundle: it has no adapter.json" in fault(hub, tmp_path / "out")
    assert Bundle.load(pull(hub, tmp_path / "out", revision="v2")).record.task == "toy"


def test_images_of_an_earlier_push_are_removed(hub: FakeHub, run: Path) -> None:
    push(hub, run)
    hub.repos[REPO].branches["main"]["validation.zip"] = b"of an earlier version"
    push(hub, run)
    assert "validation.zip" not in hub.repos[REPO].branches["main"]


def test_a_repository_is_private_on_request(hub: FakeHub, run: Path) -> None:
    push(hub, run, private=True)
    assert hub.repos[REPO].private


def test_a_public_repository_does_not_pass_for_a_private_one(hub: FakeHub, run: Path) -> None:
    hub.repos[REPO] = FakeRepo()
    with pytest.raises(HubError, match=r"ann/toy is there, and it is public"):
        push(hub, run, private=True)
    assert hub.repos[REPO].branches["main"] == {}


def test_nothing_is_written_without_a_token(hub: FakeHub, run: Path) -> None:
    with pytest.raises(HubError, match=r"needs a token: set HF_TOKEN, or log in with `hf auth login`"):
        push(hub, run, token=None)
    assert not hub.repos


def test_a_token_that_may_not_write_is_told(hub: FakeHub, run: Path) -> None:
    with pytest.raises(HubError, match=r"ann/toy: your token does not allow that \(403\)"):
        push(hub, run, token="hf_reader")


def test_a_repository_that_is_not_there_or_private_is_told(hub: FakeHub, tmp_path: Path) -> None:
    expected = f"ann/toy: no such repository on {hub.endpoint}, or it is private: set HF_TOKEN"
    assert fault(hub, tmp_path / "out").startswith(expected)


def test_a_folder_of_the_same_name_is_offered(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = fault(hub, tmp_path / "out", token=TOKEN)
    assert said.endswith("or your token may not read it; the folder of that name is ./ann/toy")


def test_a_revision_that_is_not_there_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO] = FakeRepo()
    assert fault(hub, tmp_path / "out", revision="v9").startswith("ann/toy has no revision v9: name a branch")


def test_a_gated_repository_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO] = FakeRepo(gated=True)
    assert fault(hub, tmp_path / "out").endswith(f"ask at {hub.endpoint}/ann/toy")


def test_a_hub_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    said = fault(FakeHub("http://127.0.0.1:9"), tmp_path / "out")
    assert said.startswith("ann/toy: http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused)")


def test_a_file_above_its_limit_is_not_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    files = {"adapter.json": b"{}", "adapter.safetensors": bytes(LIMIT + 100_000)}
    hub.repos[REPO] = FakeRepo(branches={"main": files})
    assert fault(hub, tmp_path / "out") == "ann/toy: adapter.safetensors has 1.1 MB; --max-size allows 1"
