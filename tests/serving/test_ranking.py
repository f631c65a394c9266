"""`auto`: what is timed, what is chosen, and when it is measured again."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from serving import ranking
from serving.machine import Machine
from serving.runtime import Mode, Runtimes
from tests.support.app import CPU, plans, running, warnings
from tests.support.tasks import TaskMaker

FP32, INT8 = Mode("onnxruntime-cpu", "fp32"), Mode("onnxruntime-cpu", "int8")
OPENVINO = Mode("openvino-bf16", "fp32")


def ranked(times: Mapping[Mode, float], precision: Any = "auto") -> tuple[Mode, ...]:
    """The order that follows from times."""
    contenders = tuple(mode for mode in (OPENVINO, INT8, FP32) if mode.meets(precision))
    return ranking.order({mode: times[mode] for mode in contenders if mode in times}, Runtimes(contenders, FP32).last)


def test_the_fastest_comes_first_and_what_is_slower_than_fp32_is_not_tried() -> None:
    assert ranked({OPENVINO: 3.0, INT8: 2.0, FP32: 5.0}) == (INT8, OPENVINO)
    assert ranked({OPENVINO: 3.0, INT8: 6.0, FP32: 5.0}) == (OPENVINO,)
    assert ranked({INT8: 6.0, FP32: 5.0}) == ()


def test_a_gain_that_noise_could_make_is_none() -> None:
    assert ranked({INT8: 4.9, FP32: 5.0}) == ()


def test_what_did_not_run_is_not_chosen() -> None:
    assert ranked({FP32: 5.0}) == ()


def test_a_precision_that_is_named_is_taken_however_slow_it_is() -> None:
    assert ranked({INT8: 6.0, FP32: 5.0}, "int8") == (INT8,)


def fastest(client: TestClient) -> dict[str, Any]:
    return {each["task"]: each["fastest"] for each in client.get("/v1/tasks").json()["tasks"]}


@pytest.fixture
def timed(quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store with an int8 file, which is timed for a moment only."""
    monkeypatch.setattr(ranking, "SECONDS", 0.01)
    return Path(shutil.copytree(quantised, tmp_path / "timed"))


def kept(store: Path) -> Path:
    """The file of times."""
    (file,) = (store / "measured").iterdir()
    return file


def pretend(store: Path, **milliseconds: float) -> None:
    """Change what was measured."""
    fields = json.loads(kept(store).read_text())
    (times,) = fields["backbones"].values()
    times["milliseconds"] = {f"onnxruntime-cpu in {precision}": took for precision, took in milliseconds.items()}
    kept(store).write_text(json.dumps(fields))


def test_every_file_is_timed_and_the_choice_is_said_once(timed: Path, said: pytest.LogCaptureFixture) -> None:
    with running(timed) as client:
        line = fastest(client)["birds"]
        assert line.startswith(("onnxruntime-cpu in int8; milli", "onnxruntime-cpu in fp32; milli"))
        assert line.count("onnxruntime-cpu in int8 ") == line.count("onnxruntime-cpu in fp32 ") == 1
        (backbone,) = {each["backbone"] for each in client.get("/v1/tasks").json()["tasks"]}
    assert [each for each in said.messages if each.startswith("the fastest")] == [
        f"the fastest for {backbone} is {line}"
    ]


@pytest.mark.parametrize(("int8", "chosen"), [(1.0, ("onnxruntime-cpu", "int8")), (9.0, CPU)])
def test_what_was_measured_is_used_again(timed: Path, int8: float, chosen: tuple[str, str]) -> None:
    with running(timed, prefetch=0):
        pass
    pretend(timed, int8=int8, fp32=5.0)
    before = kept(timed).read_bytes()
    with running(timed) as client:
        assert plans(client)["birds"] == chosen
        assert f"onnxruntime-cpu in int8 {int8:.3g}" in fastest(client)["birds"]
    assert kept(timed).read_bytes() == before


def test_a_damaged_file_of_times_is_measured_again(timed: Path, said: pytest.LogCaptureFixture) -> None:
    with running(timed, prefetch=0):
        pass
    kept(timed).write_text("{")
    with running(timed, prefetch=0) as client:
        assert fastest(client)["birds"]
    assert json.loads(kept(timed).read_text())["backbones"]
    (told,) = warnings(said)
    assert told.endswith("is damaged (ValidationError): it is measured again")


def test_the_times_of_another_machine_are_ignored(timed: Path, said: pytest.LogCaptureFixture) -> None:
    with running(timed, prefetch=0):
        pass
    pretend(timed, int8=0.001, fp32=5.0)
    kept(timed).write_text(kept(timed).read_text().replace(Machine.here(1).cpu, "another CPU"))
    with running(timed, prefetch=0) as client:
        assert "int8 0.001" not in fastest(client)["birds"]
    (told,) = warnings(said)
    assert told.endswith("is of another machine: it is measured again")


def test_files_that_changed_are_timed_again(timed: Path) -> None:
    with running(timed, prefetch=0):
        pass
    fields = json.loads(kept(timed).read_text())
    for times in fields["backbones"].values():
        times["files"] = dict.fromkeys(times["files"], "0" * 64)
        times["milliseconds"] = dict.fromkeys(times["milliseconds"], 123.0)
    kept(timed).write_text(json.dumps(fields))
    with running(timed, prefetch=0) as client:
        assert "123" not in fastest(client)["birds"]


def test_where_there_is_no_choice_nothing_is_timed(maker: TaskMaker, archives: Mapping[str, Archive]) -> None:
    with running(maker.root, runtime="onnxruntime-cpu") as client:
        assert set(plans(client).values()) == {CPU}
        assert set(fastest(client).values()) == {None}
    assert not (maker.root / "measured").exists()


def test_other_versions_and_cores_make_another_machine() -> None:
    here = Machine.here(1)
    others = [here.model_copy(update=update) for update in ({"versions": {"onnxruntime": "1.0"}}, {"cores": 96})]
    assert len({each.file for each in (here, *others)}) == 3
