"""A fleet that deploys to a running service, and the same tasks on another backbone."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mosa_deploy import Client, Predictor
from mosa_deploy.bundles.record import read_record
from mosa_deploy.client.schema import Answer
from tests.support.images import jpeg
from tests.support.service import KEY, Server, serve
from training.fleet.fleet import print_fleet
from training.fleet.options import FleetConfig
from training.fleet.rows import Row, read_rows

pytestmark = pytest.mark.slow

TASKS = """
[defaults]
backbone = "vit_tinyd6_patch4_32.cifar10"
device = "cpu"
shots = 10

[tasks.digits]
method = "linear"

[tasks.numerals]
task = "digits"
epochs = 1
bottleneck = 4
"""
"""`digits` is served already, `numerals` is not."""

SECOND = "test_vit"
"""A small ViT of timm's, of 160 px: another image size, depth and width than the embedded one's."""


@contextmanager
def service(store: Path, folder: Path) -> Iterator[Server]:
    """A running service on a copy of a store, whose admin's key is KEY."""
    shutil.copytree(store, folder / "store")
    with serve(folder / "store", folder, admin_keys=KEY, runtime="onnxruntime-cpu", prefetch=0) as server:
        server.wait_until("ready")
        yield server


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> FleetConfig:
    """A fleet whose two tasks are exported, but not deployed; tests must not change it."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "tasks.toml").write_text(TASKS)
    config = FleetConfig(folder / "tasks.toml", out=folder / "fleet", jobs=2)
    print_fleet(config)
    return config


@pytest.fixture
def fleet(exported: FleetConfig, tmp_path: Path) -> FleetConfig:
    """The same, of one's own."""
    shutil.copytree(exported.out, tmp_path / "fleet")
    return replace(exported, out=tmp_path / "fleet")


def rows_of(config: FleetConfig) -> dict[str, Row]:
    return {row.task: row for row in read_rows(config.out)}


def served(server: Server) -> dict[str, str]:
    """The digest of every task that a service has."""
    with Client(server.address) as client:
        return {task.task: task.bundle or "" for task in client.tasks()}


def scores(answer: Answer) -> dict[str, float]:
    return {each.label: each.score for each in answer.predictions}


def contents(*folders: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file in some folders was written, and what it holds."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_each_task_is_deployed_once_and_one_that_was_rolled_back_since_stays_so(
    fleet: FleetConfig, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_KEY", KEY)
    runs = contents(fleet.out / "runs", fleet.store_folder)
    with service(store, tmp_path) as server, Client(server.address) as client:
        before, config = served(server), replace(fleet, to=server.address)
        print_fleet(config)
        rows = rows_of(config)
        assert {row.state for row in rows.values()} == {"deployed"}
        digests = {name: row.bundle for name, row in rows.items()}
        assert before.keys() == {"digits", "sprites-location"}
        assert before["digits"] != digests["digits"]
        assert served(server) == before | digests
        for name, row in rows.items():
            answer, alone = client.classify(jpeg(), name, 10), Predictor.open(row.folder).classify(jpeg(), 10)
            assert answer.bundle == row.bundle
            assert scores(answer) == pytest.approx(scores(alone), abs=1e-5)

        logs = contents(fleet.out / "logs")
        print_fleet(config)
        client.roll_back("digits")
        print_fleet(config)
        assert served(server) == before | {"numerals": digests["numerals"]}
        assert contents(fleet.out / "logs") == logs
    assert contents(fleet.out / "runs", fleet.store_folder) == runs


def test_a_wrong_key_or_a_dead_address_is_one_line_for_each_task_and_the_same_command_goes_on(
    fleet: FleetConfig,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = contents(fleet.out / "runs", fleet.store_folder)

    def faults(to: str, key: str) -> list[str]:
        """The errors of a fleet in which no task can be deployed."""
        monkeypatch.setenv("MOSA_KEY", key)
        with pytest.raises(SystemExit) as caught:
            print_fleet(replace(fleet, to=to))
        assert caught.value.code == 1
        assert {row.state for row in read_rows(fleet.out)} == {"deploy failed"}
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]

    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name, line in zip(("digits", "numerals"), faults(dead, KEY), strict=True):
        assert line.startswith(f"error: {name}: deploy failed: the service does not answer (")
        assert f"is it running at {dead}?; see {fleet.out / 'logs' / name}.log" in line
    with service(store, tmp_path) as server:
        before = served(server)
        for name, line in zip(("digits", "numerals"), faults(server.address, "wrong"), strict=True):
            assert line.startswith(f"error: {name}: deploy failed: ")
            assert f"give an admin's key by --key or MOSA_KEY; see {fleet.out / 'logs' / name}.log" in line
        assert served(server) == before

        monkeypatch.setenv("MOSA_KEY", KEY)
        print_fleet(replace(fleet, to=server.address))
        assert served(server) == before | {name: row.bundle for name, row in rows_of(fleet).items()}
    assert contents(fleet.out / "runs", fleet.store_folder) == runs


def test_another_backbone_stands_beside_the_old_one_and_nothing_is_switched(
    fleet: FleetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    weights = tmp_path / "second.safetensors"
    save_file(timm.create_model(SECOND, pretrained=False).state_dict(), weights)
    monkeypatch.setenv("MOSA_KEY", KEY)
    new = replace(fleet, out=tmp_path / "new", beside=fleet.out, backbone=SECOND, backbone_weights=weights)
    with service(fleet.store_folder, tmp_path) as server:
        before, old = served(server), contents(fleet.out, tmp_path / "store")
        capsys.readouterr()
        print_fleet(new)
        assert served(server) == before
        assert contents(fleet.out, tmp_path / "store") == old
    said, was, now = capsys.readouterr().out, rows_of(fleet), rows_of(new)
    assert was.keys() == now.keys() == {"digits", "numerals"}
    for name, row in now.items():
        backbone = read_record(new.store_folder / "tasks" / name).backbone
        assert (backbone.name, backbone.source) == (row.backbone, "file") == (SECOND, "file")
        test = json.loads((new.out / "runs" / name / "evaluation" / "metrics.json").read_text())["accuracy"]
        assert row.test == test != was[name].test
        cells = f"{was[name].test:.4f} | {test:.4f} | {100 * (test - (was[name].test or 0)):+.2f}"
        assert said.count(f"| {name} | {cells} | ") == 1
        assert Predictor.open(row.folder).classify(jpeg()).bundle == row.bundle
    assert "Nothing was deployed: the same command with --to URL does so." in said
