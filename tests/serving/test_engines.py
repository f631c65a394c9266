"""Engines in the service, on a GPU of numpy; the test at the end needs a real one."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.engines import BankLimits, Request, choose_backend
from export.fp16 import to_fp16
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.errors import ConfigError, ParityError, ProviderError
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, engines_of, write_record
from mosa_deploy.utils.files import sha256
from tests.support.app import CPU, Reference, backend_of, changing, maker_on, plans, put, running, warnings
from tests.support.host_gpu import HostGpu, write_engine
from tests.support.quantised import write_proof
from tests.support.tasks import TaskMaker

LANES = {"birds": "shared", "cracks": "shared", "fields": "shared", "fields.b": "shared"}
"""The tasks that read `shared.onnx`; `grains` reads a graph of its own kind."""


@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
@pytest.mark.usefixtures("gpu")
def test_an_engine_beside_the_backbone_serves_all_tasks_of_its_graph(copied: Path, shared: Path, runtime: str) -> None:
    write_engine(shared)
    with running(copied, runtime=runtime) as client:
        assert plans(client) == {**dict.fromkeys(LANES, ("tensorrt", "fp16")), "grains": CPU}


def test_an_engine_answers_as_the_reference(gpu: HostGpu, copied: Path, shared: Path, reference: Reference) -> None:
    write_engine(shared)
    with running(copied) as client:
        gpu.ran.clear()
        for task in LANES:
            reference.check(client, task)
    assert len(gpu.ran) == len(LANES) * len(reference.maker.images)


def test_a_batch_is_cut_into_the_sizes_of_the_engine(
    gpu: HostGpu, copied: Path, shared: Path, maker: TaskMaker
) -> None:
    write_engine(shared, sizes=(1, 4))
    with running(copied) as client:
        gpu.ran.clear()
        files = [("image", image) for image in maker.images[:7]]
        assert client.post("/classify", files=files, data={"task": "birds"}).status_code == 200
    assert set(gpu.ran) <= {1, 4}
    assert 4 in gpu.ran


@pytest.mark.usefixtures("gpu")
def test_the_log_says_which_tasks_an_engine_serves(
    said: pytest.LogCaptureFixture, copied: Path, shared: Path, archives: Mapping[str, Archive]
) -> None:
    write_engine(shared)
    with running(copied):
        pass
    assert warnings(said) == []
    assert "runtime: TensorRT engines of sm86 where they fit, else onnxruntime-cpu" in said.messages
    digest = archives["birds"].bundle().digest[:12]
    assert f"serving birds, bundle {digest}, shared by tensorrt in fp16" in said.messages


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"version": "1.6"}, r"was built with tensorrt_rtx 1\.6, 1\.7\.1 is installed: .* --engine-backend tensorrt_rtx$"),
    ({"capability": "sm89"}, r"was built for sm89, this GPU is sm86: build .* --compute-capability sm86$"),
    ({"sha256": "0" * 64}, r"was altered or cut short since it was built: build it again with `mosa export"),
    ({"off": 0.5}, r"the shared graph misses its canary's .*, above 1e-02 for tensorrt in fp16: build it again"),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS)
@pytest.mark.usefixtures("gpu")
def test_an_engine_that_does_not_fit_is_one_line(
    said: pytest.LogCaptureFixture, copied: Path, shared: Path, fault: dict[str, Any], line: str
) -> None:
    engine = write_engine(shared, **fault)
    with running(copied, runtime="tensorrt") as client:
        assert set(plans(client).values()) == {CPU}
    (told,) = warnings(said)
    assert told.startswith(f"birds without {engine.name}, by onnxruntime-cpu in fp32: ")
    assert re.search(line, told), told


@pytest.mark.usefixtures("gpu")
def test_onnx_runtime_takes_the_place_of_an_engine_that_fails_its_canary(
    copied: Path, shared: Path, reference: Reference
) -> None:
    engine = write_engine(shared, off=0.5)
    with running(copied) as client:
        reference.check(client, "birds")
        lanes = backend_of(client).registry.cache.loader.lanes
        assert engine not in [candidate.file for candidate in lanes._shared]


def test_a_damaged_engine_json_is_one_line(
    gpu: HostGpu, said: pytest.LogCaptureFixture, copied: Path, shared: Path
) -> None:
    write_engine(shared)
    (shared.parent / "engine.json").write_text("{")
    with running(copied) as client:
        assert set(plans(client).values()) == {CPU}
    (told,) = warnings(said)
    assert "engine.json is damaged" in told


def test_the_canary_is_held_to_the_precision_that_the_engine_computes_in(
    gpu: HostGpu, said: pytest.LogCaptureFixture, copied: Path, shared: Path
) -> None:
    write_engine(shared, "fp16", off=1e-3)
    with running(copied) as client:
        assert plans(client)["birds"] == ("tensorrt", "fp16")
    (shared.parent / "engine.json").unlink()
    write_engine(shared, "fp32", off=1e-3)
    with running(copied) as client:
        assert plans(client)["birds"] == CPU
    (told,) = warnings(said)
    assert "above 1e-04 for tensorrt in fp32" in told


def test_fp16_comes_before_int8_before_fp32_and_the_next_takes_the_place_of_one_that_fails(
    gpu: HostGpu, said: pytest.LogCaptureFixture, copied: Path, shared: Path, archives: Mapping[str, Archive]
) -> None:
    engines = [write_engine(shared, name, off=0.5 if name == "fp16" else 0.0) for name in ("fp32", "int8", "fp16")]
    for task in LANES:
        write_proof(copied, archives[task], [shared, *engines], {"fp32": 0.9, "int8": 0.9})
    write_engine(shared, "fp16", capability="sm89")
    names = [path.name for path in engines_of(shared.parent, "shared.onnx", "sm86")]
    assert names == [f"shared.{precision}.sm86.engine" for precision in ("fp16", "int8", "fp32")]
    assert engines_of(shared.parent, "shared-qkv.onnx", "sm86") == []
    with running(copied) as client:
        assert {plans(client)[task] for task in LANES} == {("tensorrt", "int8")}
    assert len(warnings(said)) == 1


@pytest.mark.usefixtures("gpu")
def test_a_task_too_wide_for_the_engine_runs_without_it(
    said: pytest.LogCaptureFixture, copied: Path, shared: Path, reference: Reference
) -> None:
    write_engine(shared, bank=(4, 8))
    wide = reference.maker.make("moths", 20, bottleneck=9)
    with changing(copied) as client:
        assert put(client, "moths", wide).json()["runtime"] == "onnxruntime-cpu"
        reference.check(client, "moths", wide)
        assert plans(client)["birds"] == ("tensorrt", "fp16")
    (told,) = warnings(said)
    assert told.startswith("moths without shared.fp16.sm86.engine, by onnxruntime-cpu in fp32: a bottleneck of 9 ")


@pytest.mark.usefixtures("gpu")
def test_a_task_for_which_the_engine_has_no_slot_runs_without_it(
    said: pytest.LogCaptureFixture, copied: Path, shared: Path, reference: Reference
) -> None:
    # Slot 0 is of the backbone without an adapter, the others of `birds` and `cracks`.
    write_engine(shared, bank=(3, 8))
    fifth = reference.maker.make("owls", 22)
    with changing(copied) as client:
        assert put(client, "owls", fifth).json()["runtime"] == "onnxruntime-cpu"
        reference.check(client, "owls", fifth)
    (told,) = warnings(said)
    assert "all 3 slots that the shared graph was built for are taken" in told


@pytest.mark.usefixtures("gpu")
def test_the_slot_of_a_removed_task_is_the_next_ones(copied: Path, shared: Path, maker: TaskMaker) -> None:
    write_engine(shared, bank=(3, 8))
    with changing(copied) as client:
        client.delete("/v1/tasks/birds")
        assert put(client, "owls", maker.make("owls", 23)).json()["runtime"] == "tensorrt"


def test_a_task_too_wide_for_the_engine_leaves_it_to_those_after_it(
    gpu: HostGpu, copied: Path, shared: Path, maker: TaskMaker
) -> None:
    write_engine(shared, bank=(8, 8))
    maker_on(copied, maker).store(maker.make("ants", 20, bottleneck=9))
    with running(copied) as client:
        assert (plans(client)["ants"], plans(client)["birds"]) == (CPU, ("tensorrt", "fp16"))


def test_what_one_task_misses_on_a_proved_engine_costs_the_others_nothing(
    gpu: HostGpu, copied: Path, shared: Path
) -> None:
    engine = write_engine(shared)
    with running(copied) as client:
        registry = backend_of(client).registry
        candidates, birds = registry.cache.loader.candidates, registry.entry("birds").version
        assert birds is not None
        by_engine = candidates.of(birds, "shared").candidates[0]
        assert by_engine.file == engine
        candidates.fail(by_engine, "moths", ParityError("misses its canary"), serves=True, instead="onnxruntime-cpu")
        assert not candidates.given_up


def test_every_size_of_an_engine_has_run_before_the_first_request(gpu: HostGpu, copied: Path, shared: Path) -> None:
    write_engine(shared, sizes=(1, 4, 8))
    with running(copied):
        assert set(gpu.ran) == {1, 4, 8}


def test_a_bundle_whose_own_canary_fails_does_not_cost_the_engine(
    gpu: HostGpu, said: pytest.LogCaptureFixture, copied: Path, shared: Path, maker: TaskMaker
) -> None:
    write_engine(shared)
    shutil.rmtree(copied / "tasks")
    bundle = maker.make("birds", 0).bundle()
    with changing(copied) as client:
        bad = maker.make("moths", 20)
        record = bad.bundle().record.model_copy(update={"temperature": 9.0})
        wrong = Archive(record.model_dump_json(indent=2).encode() + b"\n", bad.tensors)
        response = put(client, "moths", wrong)
        assert response.status_code == 422
        assert "for onnxruntime-cpu in fp32: export the task again" in response.json()["detail"]
        good = maker.make("birds", 0)
        assert good.bundle().digest == bundle.digest
        assert put(client, "birds", good).json()["runtime"] == "tensorrt"
    assert warnings(said) == []


def test_a_new_task_uploads_its_own_slot_and_a_request_none(
    gpu: HostGpu, copied: Path, shared: Path, reference: Reference
) -> None:
    write_engine(shared)
    with changing(copied) as client:
        lane: Any = backend_of(client).registry.acquire("birds").lane
        banks: dict[str, Any] = lane.graph.runner.bound
        gpu.device.uploads.clear()
        archive = reference.maker.make("moths", 20)
        put(client, "moths", archive)
        slot = backend_of(client).registry.acquire("moths").slot
        places = {buffer.address + slot * 4 * int(np.prod(buffer.shape[1:])) for buffer in banks.values()}
        ends = [(buffer.address, buffer.address + 4 * int(np.prod(buffer.shape))) for buffer in banks.values()]
        written = [at for at in gpu.device.uploads if any(start <= at < end for start, end in ends)]
        assert sorted(written) == sorted(places)
        gpu.device.uploads.clear()
        reference.check(client, "moths", archive)
        assert not any(start <= at < end for at in gpu.device.uploads for start, end in ends)


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
def test_a_runtime_that_is_named_looks_for_no_engines(gpu: HostGpu, copied: Path, shared: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    write_engine(shared)
    with running(copied, runtime=runtime) as client:
        assert set(plans(client).values()) == {(runtime, "fp32")}
    assert gpu.ran == []


@pytest.fixture
def real_engine(shared: Path) -> None:
    """An engine for the GPU that is here, beside the shared graph."""
    try:
        backend = choose_backend(None, shared.parent / "timings.cache")
        capability = backend.target(None)
    except (ConfigError, ProviderError) as missing:
        pytest.skip(str(missing))  # no TensorRT is installed beside the GPU, or it is too old for it
    graph = shared.with_suffix(".fp16.onnx")
    onnx.save(to_fp16(onnx.load(shared)), graph)
    engine = shared.with_suffix(f".fp16.{capability}.engine")
    engine.write_bytes(backend.build(Request(graph, "fp16", (1, 8), capability, BankLimits(16, 16))))
    record = EngineRecord(
        library=backend.library,
        version=backend.version,
        precision="fp16",
        capability=capability,
        batch_sizes=(1, 8),
        bank=(16, 16),
        onnx=graph.name,
        onnx_sha256=sha256(graph),
        sha256=sha256(engine),
        parity="deferred",
    )
    write_record(engine, record)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_engine")
def test_a_real_engine_answers_in_the_service(copied: Path, reference: Reference) -> None:
    with changing(copied, runtime="tensorrt") as client:
        assert plans(client)["birds"] == ("tensorrt", "fp16")
        for task in LANES:
            reference.check(client, task, atol=2e-2)
        assert put(client, "moths", reference.maker.make("moths", 20)).json()["runtime"] == "tensorrt"
