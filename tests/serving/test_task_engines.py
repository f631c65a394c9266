"""A task's own engine in the service, on a GPU of numpy."""

import json
from pathlib import Path
from typing import Any

import fsspec
import onnx
import pytest

from mosa_deploy.graphs.fold import fold_bundle
from mosa_deploy.utils.files import sha256
from tests.support.app import CPU, Reference, changing, plans, put, running, warnings
from tests.support.host_gpu import write_engine

pytestmark = pytest.mark.usefixtures("gpu")


def folded_engine(store: Path, reference: Reference, task: str, **how: Any) -> Path:
    """The task's own engine, beside its export."""
    graph = store / "tasks" / task / "folded.onnx"
    bundle = reference.archives[task].bundle()
    onnx.save(fold_bundle(reference.maker.graph, bundle), graph)
    (graph.parent / "parity.json").write_text(json.dumps({"bundle": bundle.digest, "folded_sha256": sha256(graph)}))
    return write_engine(graph, bank=None, **how)


def test_a_task_s_own_engine_answers_as_the_reference(
    said: pytest.LogCaptureFixture, copied: Path, reference: Reference
) -> None:
    folded_engine(copied, reference, "birds")
    with running(copied, folded="birds,cracks") as client:
        assert plans(client)["birds"] == ("tensorrt", "fp16")
        assert plans(client)["cracks"] == CPU
        reference.check(client, "birds")
    assert warnings(said) == []


def test_a_task_s_own_engine_is_for_the_exported_version_alone(copied: Path, reference: Reference) -> None:
    folded_engine(copied, reference, "birds")
    newer = reference.maker.make("birds", 9)
    with changing(copied, folded="birds") as client:
        assert put(client, "birds", newer).json()["runtime"] == "onnxruntime-cpu"
        reference.check(client, "birds", newer)
        assert client.post("/v1/tasks/birds/rollback").json()["runtime"] == "tensorrt"


def test_a_deferred_engine_of_a_task_is_proved_before_it_answers(
    said: pytest.LogCaptureFixture, copied: Path, reference: Reference
) -> None:
    folded_engine(copied, reference, "birds", off=0.5)
    with running(copied, folded="birds") as client:
        assert plans(client)["birds"] == CPU
        reference.check(client, "birds")
    (told,) = warnings(said)
    assert "misses its canary's probabilities" in told


def test_engines_come_along_from_a_remote_store(copied: Path, shared: Path, reference: Reference) -> None:
    write_engine(shared)
    folded_engine(copied, reference, "cracks", precision="fp32")
    memory = fsspec.filesystem("memory")
    memory.put(str(copied), "/engines", recursive=True)
    try:
        with running("memory://engines", folded="cracks") as client:
            assert plans(client)["birds"] == ("tensorrt", "fp16")
            assert plans(client)["cracks"] == ("tensorrt", "fp32")
            reference.check(client, "cracks")
    finally:
        memory.rm("/engines", recursive=True)
