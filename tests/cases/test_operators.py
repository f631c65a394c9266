"""What operators run into: keys, starts that cannot succeed, logs, and machines that are not as they seem."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.errors import StoreError
from serving.log import LineFormatter
from serving.settings import Settings
from serving.store import check_store
from tests.support.app import running, top
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ \[\S+\] .+")


@pytest.mark.parametrize(
    ("key", "status", "reason"),
    [
        ("a-key", 403, "this key may ask, but not change tasks: send one of the service's admin keys"),
        ("wrong", 401, "send one of the service's admin keys as `Authorization: Bearer ...`"),
        (None, 401, "send one of the service's admin keys as `Authorization: Bearer ...`"),
        ("root-key", 204, None),
    ],
)
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_users_key_is_forbidden_to_change_and_an_unknown_one_is_unauthorised(
    copied: Path, key: str | None, status: int, reason: str | None, header: str
) -> None:
    value = f"Bearer {key}" if header == "authorization" else str(key)
    with running(copied, api_keys="a-key", admin_keys="root-key", prefetch=0) as client:
        answer = client.delete("/v1/tasks/birds", headers={header: value} if key else {})
    assert answer.status_code == status
    assert reason is None or answer.json()["detail"] == reason


def ended(server: Server) -> list[str]:
    """The lines of a server that must end by itself with the exit code of a user's mistake."""
    assert server.process.wait(60) == 2
    return server.log.read_text().splitlines()


def test_an_empty_store_without_admin_keys_ends_the_server(tmp_path: Path) -> None:
    with serve(tmp_path / "nowhere", tmp_path) as server:
        lines = ended(server)
    assert lines == [
        f"error: no task in {tmp_path}/nowhere/tasks: write one with `mosa export --out {tmp_path}/nowhere`"
    ]


def test_so_does_a_store_without_its_backbone_and_every_line_of_the_log_has_one_format(
    copied: Path, tmp_path: Path
) -> None:
    (backbone,) = (copied / "backbones").iterdir()
    shutil.rmtree(backbone)
    with serve(copied, tmp_path) as server:
        *log, last = ended(server)
    assert last.startswith(f"error: no task of {copied} can be served: {backbone}: no such folder; write it with ")
    assert [line for line in log if not LINE.fullmatch(line)] == []
    assert any(" ERROR [birds] not serving birds: " in line for line in log)


def test_a_taken_port_is_one_line_of_the_server_itself(maker: TaskMaker, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Classifier", "--port", port]
        environment = {"MOSA_ARTIFACTS": str(maker.root), "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
        done = run([*command, "--host", "127.0.0.1"], tmp_path, environment)
    assert (done.returncode, done.stdout + done.stderr) == (
        2,
        f"error: 127.0.0.1:{port}: something listens there already: stop it, or choose another --port\n",
    )


def run(command: list[str], folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command that must end by itself."""
    given = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_a_store_that_is_a_file_is_named(tmp_path: Path, keys: tuple[str, ...]) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"store is a file: name the folder that `mosa export --out` has written$"):
        check_store(Settings(artifacts=str(tmp_path / "store"), admin_keys=keys))


def test_a_store_behind_a_url_that_does_not_answer_is_named() -> None:
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:9/store cannot be (read|opened)"):
        check_store(Settings(artifacts="http://127.0.0.1:9/store"))


def test_a_line_of_the_log_states_time_level_and_tasks(
    client: TestClient, maker: TaskMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mosa_deploy.requests")
    top(client, "birds", maker.images[0])
    (line,) = map(LineFormatter().format, caplog.records)
    assert LINE.fullmatch(line)
    assert ' INFO [birds] {"id": ' in line
