import json
import sys
from pathlib import Path

import pytest

from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.runtimes.cuda import device_capability
from mosa_deploy.runtimes.runner import check_runner, open_runner
from mosa_deploy.runtimes.tensorrt import load_engine
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, check_engine, read_record, read_records, write_record
from mosa_deploy.utils.files import sha256


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "folded.fp16.sm86.engine"
    path.write_bytes(b"an engine")
    write_record(path, record(path))
    return path


def record(path: Path, library: str = "tensorrt_rtx") -> EngineRecord:
    return EngineRecord.model_validate(
        {
            "library": library,
            "version": "1.7.1",
            "precision": "fp16",
            "capability": "sm86",
            "batch_sizes": [1, 8],
            "bank": None,
            "onnx": "folded.fp16.onnx",
            "onnx_sha256": "0" * 64,
            "sha256": sha256(path),
            "parity": "deferred",
        }
    )


def test_each_engine_of_a_folder_has_its_record(engine: Path) -> None:
    other = engine.with_name("folded.int8.sm89.engine")
    other.write_bytes(b"another")
    proved = record(other).model_copy(update={"parity": 1e-3})
    write_record(other, proved)
    assert read_records(engine.parent) == {engine.name: record(engine), other.name: proved}
    assert read_record(other) == proved
    stored = json.loads((engine.parent / "engine.json").read_text())
    assert stored["engines"][engine.name]["parity"] == "deferred"
    assert read_records(engine.parent / "nowhere") == {}


@pytest.mark.parametrize(
    ("version", "capability", "line"),
    [
        ("1.7.1", None, r"needs an NVIDIA GPU of sm86, which is not here: run its ONNX file$"),
        ("1.7.1", "sm89", r"was built for sm86, this GPU is sm89: build it again .* --compute-capability sm89$"),
        (
            "1.8.0",
            "sm86",
            r"was built with tensorrt_rtx 1\.7\.1, 1\.8\.0 is installed: .* --engine-backend tensorrt_rtx$",
        ),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_one_line_with_the_flag_that_mends_it(
    engine: Path, version: str, capability: str | None, line: str
) -> None:
    check_engine(engine, record(engine), "1.7.1", "sm86")
    with pytest.raises(ProviderError, match=rf"^{engine} {line}") as caught:
        check_engine(engine, record(engine), version, capability)
    assert "\n" not in str(caught.value)


def test_a_missing_or_altered_engine_is_refused(engine: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.engine: no such engine; build it again with `mosa export --target"):
        read_record(engine.with_name("none.engine"))
    engine.write_bytes(b"an engin")
    with pytest.raises(StoreError, match=r"folded\.fp16\.sm86\.engine was altered or cut short since it was built: "):
        read_record(engine)
    (engine.parent / "engine.json").unlink()
    with pytest.raises(StoreError, match=r"engine\.json: no such engine; build it again"):
        read_record(engine)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format_version": 1}', '{"format_version": 1, "engines": {"a": {"library": "x"}}}']
)
def test_a_damaged_record_is_one_line(engine: Path, content: str) -> None:
    (engine.parent / "engine.json").write_text(content)
    with pytest.raises(StoreError, match=r"engine\.json is damaged \(\w+\): build it again"):
        read_record(engine)


def test_the_runner_says_first_what_is_missing(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosa_deploy.runtimes.tensorrt.device_capability", lambda: None)
    for library in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ProviderError, match=r"^no TensorRT is installed: pip install 'mosa-deploy\[tensorrt-rtx\]'"):
        check_runner("tensorrt")
    with pytest.raises(
        ProviderError, match=r"^tensorrt_rtx is not installed: pip install 'mosa-deploy\[tensorrt-rtx\]'$"
    ):
        open_runner(engine, "tensorrt")


def test_without_a_gpu_both_say_so(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("mosa_deploy.runtimes.tensorrt.device_capability", lambda: None)
    with pytest.raises(ProviderError, match=r"^no NVIDIA GPU is here: run the ONNX files$"):
        check_runner("tensorrt")
    here = record(engine).model_copy(update={"version": library.__version__})
    with pytest.raises(ProviderError, match=r"needs an NVIDIA GPU of sm86, which is not here"):
        load_engine(engine, here)


def test_cuda_bindings_that_are_missing_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(
        ProviderError, match=r"^cuda-bindings is not installed: pip install 'mosa-deploy\[tensorrt-rtx\]'"
    ):
        device_capability()
