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
import torch
from fastapi.testclient import TestClient

from mosa_deploy.errors import StoreAccessError, StoreError, command
from mosa_deploy.runtimes import cuda
from serving.log import LineFormatter
from serving.runtime import choose
from serving.settings import Settings
from serving.store import check_store
from tests.support.app import running, top, warnings
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker
from tests.support.walker import ROOT
from training.devices import choose_device

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ \[\S+\] .+")


@pytest.mark.parametrize(
    ("key", "status", "reason"),
    [
        ("a-key", 403, "this key may ask, but not change tasks: send one of the service's admin keys"),
        (
            "wrong",
            401,
            "the service does not know this key: send one of the service's admin keys as `Authorization: Bearer ...`",
        ),
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
    with pytest.raises(StoreAccessError, match=r"^http://127\.0\.0\.1:9/store\S* cannot be read \(.*failed.*\): see"):
        check_store(Settings(artifacts="http://127.0.0.1:9/store"))


def test_a_line_of_the_log_states_time_level_and_tasks(
    client: TestClient, maker: TaskMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mosa_deploy.requests")
    top(client, "birds", maker.images[0])
    (line,) = map(LineFormatter().format, caplog.records)
    assert LINE.fullmatch(line)
    assert ' INFO [birds] {"id": ' in line


@pytest.fixture
def unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as seen on its PCI bus, and without a driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_gpu", lambda: True)
    monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_driver", lambda: False)


@pytest.mark.usefixtures("unusable")
def test_a_gpu_without_a_driver_is_a_warning_of_the_service(said: pytest.LogCaptureFixture) -> None:
    assert choose("auto").last.runner == "onnxruntime-cpu"
    (line,) = warned(said)
    assert line.startswith("an NVIDIA GPU is here, but graphs run on the CPU: the driver's libcuda.so.1 is not found: ")


@pytest.mark.usefixtures("unusable")
def test_a_gpu_on_which_onnx_runtime_does_not_start_is_one_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("libcublasLt.so.12: cannot open shared object file")

    monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_driver", lambda: True)
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", fail)
    assert choose("auto").last.runner == "onnxruntime-cpu"
    (line,) = warned(said)
    assert "(libcublasLt.so.12: cannot open shared object file)" in line


@pytest.mark.usefixtures("unusable")
def test_a_gpu_that_the_user_hides_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose("auto").last.runner == "onnxruntime-cpu"
    assert choose_device("auto") == "cpu"
    assert (warned(said), capsys.readouterr().out) == ([], "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="an NVIDIA GPU works here")
@pytest.mark.usefixtures("unusable")
def test_tuning_on_the_cpu_beside_a_gpu_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_device("auto") == "cpu"
    assert capsys.readouterr().out.startswith("warning: an NVIDIA GPU is here, but the CPU is used: ")
    assert choose_device("cpu") == "cpu"
    assert capsys.readouterr().out == ""


def test_a_gpu_is_found_on_the_pci_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("gpu", "0x10de", "0x030200"),
        ("sound", "0x10de", "0x040300"),
        ("other", "0x1af4", "0x0300"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}00\n")
    found = [each.name for each in sorted(tmp_path.iterdir()) if cuda.is_nvidia_display(each)]
    assert found == ["gpu"]


def warned(said: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in said.records if record.levelno == logging.WARNING]


def test_a_task_that_is_to_be_folded_and_is_not_there_is_a_warning(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(copied, folded="bird,cracks", prefetch=0):
        pass
    assert warnings(caplog) == ["MOSA_FOLDED: unknown task 'bird'; did you mean birds?"]


MOSA = ("-c", "from mosa_deploy.cli import main; main()")


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        (
            "HOME",
            "HOME={file}: {file}/bentoml cannot be written (Not a directory): name a folder that can; BENTOML_HOME",
        ),
        ("BENTOML_HOME", "BENTOML_HOME={file}: {file} cannot be written (File exists): name a folder that can"),
        ("TMPDIR", "TMPDIR={file}: {file} cannot be written (File exists): name a folder that can"),
    ],
)
def test_a_folder_that_the_service_cannot_write_is_named_by_its_variable(
    maker: TaskMaker, tmp_path: Path, variable: str, line: str
) -> None:
    (tmp_path / "file").write_text("")
    environment = {"HOME": str(tmp_path), variable: str(tmp_path / "file")}
    line_of_shell = [sys.executable, *MOSA, "serve", "--artifacts", str(maker.root), "--port", "3999"]
    done = run(line_of_shell, ROOT, environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line.format(file=tmp_path / 'file')}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", [["tune", "--task", "digits"], ["compare"]])
def test_tuning_names_the_folder_for_temporary_files(tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "file").write_text("")
    done = run([sys.executable, *MOSA, *verb], tmp_path, {"TMPDIR": str(tmp_path / "file"), "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr.startswith(f"error: TMPDIR={tmp_path}/file: ")) == (2, True)


def test_a_home_that_cannot_be_written_is_named_wherever_a_library_finds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))

    @command
    def main() -> None:
        (tmp_path / "file" / "hub").mkdir()

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/file/hub: Not a directory; HF_HOME={tmp_path}/file names its folder: name one that this"
        " user can write\n"
    )
