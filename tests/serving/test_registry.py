import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from onnx import numpy_helper

from mosa_deploy.bundle import Bundle
from mosa_deploy.errors import ConfigError, StoreError
from mosa_deploy.runners import OnnxRunner
from mosa_deploy.store import Store
from serving.registry import Registry
from serving.service import app
from serving.settings import Settings
from tests.serving.conftest import picture


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    """A store of one's own."""
    return Path(shutil.copytree(store, tmp_path / "store"))


def alter_weights(graph: Path) -> None:
    """Turn the sign of a layer: names, shapes and types stay."""
    model = onnx.load(graph)
    widest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    widest.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(widest), widest.name))
    onnx.save(model, graph)


def swap_in_the_other_task(graph: Path) -> None:
    shutil.copy(graph.parents[1] / "sprites-location" / graph.name, graph)


def swap_in_another_size(graph: Path) -> None:
    """A graph that does not take this task's images."""
    model = onnx.load(graph)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    del model.graph.value_info[:]
    onnx.save(model, graph)


def cut_short(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:5000])


def change_a_temperature(graph: Path) -> None:
    """The record says another temperature than the canary was recorded with."""
    record = graph.with_name("adapter.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "temperature": 9.0}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (alter_weights, r"^'digits': folded\.onnx misses its canary's probabilities by \d.*: export it again$"),
        (swap_in_the_other_task, r"^'digits': folded\.onnx misses its canary's probabilities by inf: export it again$"),
        (change_a_temperature, r"^'digits': folded\.onnx misses its canary's probabilities by \d.*: export it again$"),
        (
            swap_in_another_size,
            r"^'digits': folded\.onnx does not take its canary: .*invalid dimensions.*; export it again$",
        ),
        (cut_short, r"digits/folded\.onnx cannot be loaded: .*; export it again$"),
        (Path.unlink, r"digits/folded\.onnx: no such file; write it with `python -m export`$"),
    ],
)
def test_a_task_with_a_damaged_graph_is_refused_and_the_other_is_served(
    copied: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(copied / "tasks" / "digits" / "folded.onnx")
    registry = Registry.open(Store(copied), threads=1)
    assert list(registry.tasks) == ["sprites-location"]
    assert list(registry.refused) == ["digits"]
    assert re.search(reason, registry.refused["digits"])
    assert "\n" not in registry.refused["digits"]


@pytest.mark.parametrize("file", ["adapter.safetensors", "adapter.json"])
def test_a_task_with_a_damaged_bundle_is_refused(copied: Path, file: str) -> None:
    damaged = copied / "tasks" / "digits" / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    registry = Registry.open(Store(copied), threads=1)
    assert list(registry.tasks) == ["sprites-location"]
    assert str(damaged) in registry.refused["digits"]
    assert registry.refused["digits"].endswith("copy the bundle again")


def test_a_refused_task_is_503_with_its_reason_and_the_other_still_answers(copied: Path) -> None:
    alter_weights(copied / "tasks" / "digits" / "folded.onnx")
    app.state.registry = Registry.open(Store(copied), threads=1)
    client = TestClient(app)
    answers = {
        task: client.post("/classify", files={"image": picture()}, data={"task": task})
        for task in ("digits", "sprites-location", "cats")
    }
    assert {task: answer.status_code for task, answer in answers.items()} == {
        "digits": 503,
        "sprites-location": 200,
        "cats": 404,
    }
    assert "misses its canary's probabilities" in answers["digits"].json()["detail"]
    assert [entry["task"] for entry in client.get("/v1/tasks").json()["tasks"]] == ["sprites-location"]


def test_a_store_without_a_sound_task_is_an_error_that_tells_every_reason(copied: Path) -> None:
    alter_weights(copied / "tasks" / "digits" / "folded.onnx")
    (copied / "tasks" / "sprites-location" / "adapter.json").write_text("{")
    with pytest.raises(StoreError, match=r"no task of .*store can be served: 'digits': .*; .*adapter\.json") as caught:
        Registry.open(Store(copied), threads=1)
    assert "\n" not in str(caught.value)


def test_an_empty_store_names_the_command_that_fills_it(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(StoreError) as caught:
        Registry.open(Store(tmp_path))
    assert str(caught.value) == f"no task in {tmp_path}/tasks: write one with `python -m export --out {tmp_path}`"


def test_what_an_interrupted_export_left_is_not_served(copied: Path) -> None:
    shutil.copytree(copied / "tasks" / "digits", copied / "tasks" / ".digits.abc.tmp")
    (copied / "tasks" / "half").mkdir()
    registry = Registry.open(Store(copied), threads=1)
    assert list(registry.tasks) == ["digits", "sprites-location"]
    assert not registry.refused


def test_a_served_task_holds_its_canary_and_the_threads_it_was_given(registry: Registry, store: Path) -> None:
    for name, served in registry.tasks.items():
        bundle = Bundle.load(store / "tasks" / name)
        given = served.probabilities(bundle.canary.inputs(bundle.record.preprocess))
        np.testing.assert_allclose(given, bundle.canary.probabilities, atol=1e-4)
        assert isinstance(served.runner, OnnxRunner)
        assert served.runner.session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Settings(Path("artifacts"), 0)),
        ({"MOSA_ARTIFACTS": "else/where", "MOSA_THREADS": "3"}, Settings(Path("else/where"), 3)),
    ],
)
def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Settings
) -> None:
    for name in ("MOSA_ARTIFACTS", "MOSA_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == expected


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "", "²", " 2"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MOSA_THREADS", value)
    with pytest.raises(ConfigError, match=rf"^MOSA_THREADS={value}: give a whole number, 0 for all cores$"):
        Settings.from_environment()
