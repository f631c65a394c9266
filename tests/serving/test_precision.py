"""MOSA_PRECISION: which tasks are answered in int8, and why the others are not."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient

from export.fp16 import to_fp16
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import add_graph_file
from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.errors import ConfigError, ProviderError, StoreError
from mosa_deploy.graphs.adapter_weights import layout_of
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.shared import SharedTask, bank_scales
from mosa_deploy.utils.files import sha256
from serving.local_backend import LocalBackend
from serving.settings import Settings
from tests.support.app import CPU, Reference, changing, maker_on, named, plans, put, running, scores, warnings
from tests.support.quantised import undecided, write_own, write_proof
from tests.support.tasks import TaskMaker

STEEP = 200.0
INT8 = ("onnxruntime-cpu", "int8")


@pytest.fixture
def store(quantised: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(quantised, tmp_path / "quantised"))


def backbone(root: Path) -> Path:
    (folder,) = (root / "backbones").iterdir()
    return folder


def fallbacks(client: TestClient) -> dict[str, Any]:
    """Task -> why a faster file does not serve it."""
    return {each["task"]: each["fallback"] for each in client.get("/v1/tasks").json()["tasks"]}


def by_file(file: Path, bundle: Bundle, image: bytes) -> Array:
    """What a shared file gives for a task and an image: probabilities (K,)."""
    preprocess = bundle.record.preprocess
    task = SharedTask.alone(bundle, layout_of(bundle.record), bank_scales(file))
    answer = task.answer_by(OnnxRunner(file, threads=1))
    logits = answer(preprocess.normalise(preprocess.read(image)[None]))
    return np.asarray(probabilities(logits, bundle.record.temperature)[0])


def test_a_task_is_answered_by_the_int8_file_itself(
    quantised: Path, maker: TaskMaker, archives: Mapping[str, Archive]
) -> None:
    with running(quantised, precision="int8") as client:
        assert plans(client)["birds"] == INT8
        assert fallbacks(client)["birds"] is None
        answer = client.post("/classify", files={"image": maker.images[5]}, data={"task": "birds", "top_k": "99"})
    row = by_file(backbone(quantised) / "shared.int8.onnx", archives["birds"].bundle(), maker.images[5])
    assert scores(answer) == pytest.approx(named(archives["birds"], row), abs=1e-5)


def test_a_task_that_loses_accuracy_stays_in_fp32_beside_one_that_does_not(
    quantised: Path, reference: Reference, said: pytest.LogCaptureFixture
) -> None:
    with running(quantised, precision="int8") as client:
        assert (plans(client)["birds"], plans(client)["cracks"]) == (INT8, CPU)
        reference.check(client, "cracks")
        reason = fallbacks(client)["cracks"]
    assert reason.startswith("shared.int8.onnx: an accuracy of 0.9400 in int8 on the validation images of its export,")
    assert reason.endswith("1.00 points less, and MOSA_MAX_ACCURACY_LOSS=0.3")
    assert [line for line in warnings(said) if line.startswith("cracks without shared.int8.onnx, by onnxr")] != []


def test_the_loss_that_is_allowed_is_a_setting(quantised: Path) -> None:
    with running(quantised, precision="int8", max_accuracy_loss=1.5) as client:
        assert plans(client)["cracks"] == INT8


def test_a_task_of_which_nothing_is_known_stays_in_fp32(quantised: Path) -> None:
    with running(quantised, precision="int8") as client:
        assert plans(client)["fields"] == CPU
        assert "nothing says what int8 costs it" in fallbacks(client)["fields"]


def test_what_the_export_found_wrong_is_said(store: Path) -> None:
    proof = store / "tasks" / "birds" / "parity.json"
    fields = json.loads(proof.read_text())
    fields["files"]["shared.int8.onnx"] |= {"accuracy": None, "fault": "it differs from fp32 by a cosine of 0.5"}
    proof.write_text(json.dumps(fields))
    with running(store, precision="int8") as client:
        reason = "shared.int8.onnx: its export found that it differs from fp32 by a cosine of 0.5"
        assert fallbacks(client)["birds"] == reason


def test_a_task_whose_graph_has_no_int8_file_names_the_command(quantised: Path) -> None:
    with running(quantised, precision="int8") as client:
        assert plans(client)["grains"] == CPU
        assert fallbacks(client)["grains"] == (
            "there is no shared-qkv.int8.onnx of this version: `mosa export --precision fp32,int8 --bundle RUN --out"
            " STORE` writes it"
        )


def test_fp32_is_what_the_setting_names(quantised: Path) -> None:
    with running(quantised, precision="fp32") as client:
        assert set(plans(client).values()) == {CPU}
        assert set(fallbacks(client).values()) == {None}


def test_an_altered_file_is_given_up_for_all_in_one_line(
    store: Path, reference: Reference, said: pytest.LogCaptureFixture
) -> None:
    with (backbone(store) / "shared.int8.onnx").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\0")
    with running(store, precision="int8") as client:
        assert set(plans(client).values()) == {CPU}
        assert all("altered" in reason for task, reason in fallbacks(client).items() if task != "grains")
        reference.check(client, "birds")
    (told,) = warnings(said)
    assert told.startswith("birds without shared.int8.onnx, by onnxruntime-cpu in fp32: ")


def test_a_canary_that_fails_in_int8_moves_that_task_alone(
    store: Path, maker: TaskMaker, archives: Mapping[str, Archive], said: pytest.LogCaptureFixture
) -> None:
    steep = undecided(maker, "cracks", STEEP)
    maker_on(store, maker).store(steep)
    file = backbone(store) / "shared.int8.onnx"
    write_proof(store, steep, [file, file.with_name("shared.onnx")], {"fp32": 0.9, "int8": 0.9})
    with running(store, precision="int8") as client:
        assert (plans(client)["birds"], plans(client)["cracks"]) == (INT8, CPU)
        assert "misses its canary's probabilities" in fallbacks(client)["cracks"]


def test_an_upload_of_the_folded_lane_is_in_fp32(
    store: Path, archives: Mapping[str, Archive], newer: Archive, maker: TaskMaker, reference: Reference
) -> None:
    files = write_own(store, maker, archives["birds"])
    write_proof(store, archives["birds"], files, {"fp32": 0.95, "int8": 0.95})
    with changing(store, precision="int8", folded="birds") as client:
        assert plans(client)["birds"] == INT8
        put(client, "birds", newer)
        assert plans(client)["birds"] == CPU
        assert "there is no folded.int8.onnx of this version" in fallbacks(client)["birds"]
        reference.check(client, "birds", newer)


@pytest.mark.parametrize("altered", [("folded.int8.onnx",), ("folded.int8.onnx", "folded.onnx")])
def test_altered_files_of_a_task_are_not_opened(
    store: Path, archives: Mapping[str, Archive], maker: TaskMaker, reference: Reference, altered: tuple[str, ...]
) -> None:
    files = write_own(store, maker, archives["birds"])
    write_proof(store, archives["birds"], files, {"fp32": 0.95, "int8": 0.95})
    for name in altered:
        with files[0].with_name(name).open("ab") as handle:
            handle.write(b"\0")
    with running(store, precision="int8", folded="birds") as client:
        assert plans(client)["birds"] == CPU
        assert f"{altered[-1]} is not the graph that was proved with this bundle" in fallbacks(client)["birds"]
        reference.check(client, "birds")


def refused(store: Path, **settings: Any) -> Any:
    """What ends the start."""
    with pytest.raises((ConfigError, ProviderError, StoreError)) as caught:
        LocalBackend(Settings.model_validate({"artifacts": str(store), **settings}))
    return str(caught.value)


def test_a_precision_that_no_file_has_ends_the_start(copied: Path) -> None:
    assert refused(copied, precision="int8") == (
        f"MOSA_PRECISION=int8: {copied} holds no such file: `mosa export --precision fp32,int8 --bundle RUN --out"
        " STORE` writes one; or leave MOSA_PRECISION out"
    )


def test_an_int8_file_for_tensorrt_is_none_for_a_cpu(copied: Path) -> None:
    graph = backbone(copied) / "shared.onnx"
    shutil.copy(graph, graph.with_name("shared.int8-tensorrt.onnx"))
    assert "shared.int8-tensorrt.onnx is for TensorRT alone" in refused(copied, precision="int8")


def test_an_int8_file_for_tensorrt_under_another_name_is_not_served_by_a_cpu(
    store: Path, said: pytest.LogCaptureFixture
) -> None:
    file = backbone(store) / "shared.int8.onnx"
    graph = onnx.load(file)
    graph.metadata_props[-1].value = "tensorrt"
    onnx.save(graph, file)
    index = json.loads((file.parent / "graph.json").read_text())
    index["files"][file.name] = sha256(file)
    (file.parent / "graph.json").write_text(json.dumps(index))
    with running(store, precision="int8") as client:
        assert set(plans(client).values()) == {CPU}
    assert "was quantised for TensorRT" in warnings(said)[0]


def test_fp16_takes_a_gpu(quantised: Path) -> None:
    assert refused(quantised, precision="fp16").startswith(
        "MOSA_PRECISION=fp16: onnxruntime-cpu does not compute in it, it takes an NVIDIA GPU"
    )


def test_bf16_takes_openvino(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert refused(quantised, precision="bf16") == (
        "MOSA_PRECISION=bf16: OpenVINO is not installed: pip install 'mosa-deploy[openvino]'"
    )


@pytest.mark.gpu
def test_fp16_is_run_on_cuda_without_tensorrt(copied: Path, reference: Reference) -> None:
    graph = backbone(copied) / "shared.onnx"
    onnx.save(to_fp16(onnx.load(graph)), format_file(graph, "fp16"))
    add_graph_file(format_file(graph, "fp16"))
    with running(copied, runtime="onnxruntime-cuda", precision="fp16") as client:
        assert plans(client)["birds"] == ("onnxruntime-cuda", "fp16")
        assert plans(client)["grains"] == ("onnxruntime-cuda", "tf32")
        reference.check(client, "birds", atol=2e-2)


def test_settings_that_exclude_each_other_end_the_start(quantised: Path) -> None:
    text = refused(quantised, precision="bf16", runtime="onnxruntime-cpu")
    assert text.startswith("MOSA_PRECISION=bf16: onnxruntime-cpu does not compute in it, it takes OpenVINO on a CPU")
