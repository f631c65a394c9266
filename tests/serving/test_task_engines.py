"""A task's own engine in the service, on a GPU of numpy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import onnx
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.graphs.fold import fold_bundle
from tests.support.app import ADMIN, CPU, check, plans, running, warnings
from tests.support.host_gpu import HostGpu, write_engine
from tests.support.tasks import TaskMaker


def folded_engine(store: Path, maker: TaskMaker, archive: Archive, **how: Any) -> Path:
    """The task's own engine, beside its export."""
    graph = store / "tasks" / archive.bundle().record.task / "folded.onnx"
    onnx.save(fold_bundle(maker.graph, archive.bundle()), graph)
    return write_engine(graph, bank=None, **how)


def test_a_task_s_own_engine_is_for_the_exported_version_alone(
    gpu: HostGpu,
    said: pytest.LogCaptureFixture,
    copied: Path,
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    offline: Mapping[str, Array],
) -> None:
    folded_engine(copied, maker, archives["birds"])
    with running(copied, admin_keys="root-key", folded="birds,cracks") as client:
        client.headers.update(ADMIN)
        assert plans(client)["birds"] == ("tensorrt", "fp16")
        assert plans(client)["cracks"] == CPU
        check(client, maker, "birds", archives["birds"], offline["birds"])
        newer = maker.make("birds", 9)
        assert client.put("/v1/tasks/birds", content=newer.pack()).json()["runtime"] == "onnxruntime-cpu"
        check(client, maker, "birds", newer, maker.offline(newer))
        assert client.post("/v1/tasks/birds/rollback").json()["runtime"] == "tensorrt"
    assert warnings(said) == []


def test_a_deferred_engine_of_a_task_is_proved_before_it_answers(
    gpu: HostGpu,
    said: pytest.LogCaptureFixture,
    copied: Path,
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    offline: Mapping[str, Array],
) -> None:
    folded_engine(copied, maker, archives["birds"], off=0.5)
    with running(copied, folded="birds") as client:
        assert plans(client)["birds"] == CPU
        check(client, maker, "birds", archives["birds"], offline["birds"])
    (told,) = warnings(said)
    assert "misses its canary's probabilities" in told


def test_engines_come_along_from_a_remote_store(
    gpu: HostGpu,
    copied: Path,
    shared: Path,
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    offline: Mapping[str, Array],
) -> None:
    write_engine(shared)
    folded_engine(copied, maker, archives["cracks"], precision="fp32")
    memory = fsspec.filesystem("memory")
    memory.put(str(copied), "/engines", recursive=True)
    try:
        with running("memory://engines", folded="cracks") as client:
            assert plans(client)["birds"] == ("tensorrt", "fp16")
            assert plans(client)["cracks"] == ("tensorrt", "fp32")
            check(client, maker, "cracks", archives["cracks"], offline["cracks"])
    finally:
        memory.rm("/engines", recursive=True)
