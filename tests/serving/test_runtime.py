"""What MOSA_RUNTIME means on a machine, and what is said where engines cannot be used."""

from pathlib import Path

import onnxruntime
import pytest

from mosa_deploy.errors import ConfigError, ProviderError
from mosa_deploy.runtimes.names import RUNNERS
from serving.lanes import ExecutionPlan
from serving.local_backend import LocalBackend
from serving.runtime import Mode, Runtimes, choose
from serving.settings import Settings
from tests.support.host_gpu import HostGpu
from tests.support.openvino import pretend_openvino

FP32 = Mode("onnxruntime-cpu", "fp32")


def test_without_a_gpu_tensorrt_stops_the_start_and_auto_says_that_it_uses_no_engines(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    HostGpu().install(monkeypatch, capability=None)
    with pytest.raises(ProviderError, match=r"^MOSA_RUNTIME=tensorrt: no NVIDIA GPU is here"):
        LocalBackend(Settings(artifacts=str(tmp_path), runtime="tensorrt"))
    assert choose("auto").last == FP32
    assert choose("auto").capability is None
    assert said.messages[:1] == ["no engines are used: no NVIDIA GPU is here"]


def test_cuda_that_does_not_start_stops_the_start_and_auto_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # onnxruntime-gpu names the provider wherever it is installed.
    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", _no_library)
    monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_driver", lambda: True)
    with pytest.raises(ProviderError, match=r"^MOSA_RUNTIME=onnxruntime-cuda: CUDAExecutionProvider did not start"):
        LocalBackend(Settings(artifacts=str(tmp_path), runtime="onnxruntime-cuda", admin_keys=("key",)))
    assert choose("auto").last == FP32


def _no_library(*_: object) -> None:
    raise RuntimeError("CUDA Provider not available, can't get interface for it")


def test_auto_without_tensorrt_names_the_extra(
    gpu: HostGpu, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mosa_deploy.runtimes.tensorrt.installed", list)
    assert (choose("auto").last, choose("auto").capability) == (FP32, None)
    assert said.messages[0].startswith("no engines are used: no TensorRT is installed: pip install 'mosa-deploy[tens")


def test_cuda_runs_fp16_files_and_no_int8_file_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.runtime.check_runner", lambda name: None)
    fp16, fp32 = Mode("onnxruntime-cuda", "fp16"), Mode("onnxruntime-cuda", "fp32")
    found = choose("onnxruntime-cuda")
    assert (found.contenders, found.last, found.unmeasured) == ((fp16, fp32), fp32, ())
    assert choose("onnxruntime-cuda", "fp16").unmeasured == (fp16,)
    with pytest.raises(ConfigError, match=r"^MOSA_PRECISION=int8: onnxruntime-cuda does not compute in it, it takes"):
        choose("onnxruntime-cuda", "int8")


def test_a_runtime_that_is_named_bf16_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.runtime.check_runner", lambda name: None)
    bf16 = Mode("openvino-bf16", "fp32")
    for found in (choose("openvino-bf16"), choose("openvino-bf16", "bf16"), choose("openvino", "bf16")):
        assert (found.unmeasured, found.last) == ((bf16,), Mode("openvino", "fp32"))
    assert choose("auto", "bf16") == Runtimes((bf16,), FP32, None, "bf16", (bf16,))
    with pytest.raises(ConfigError, match=r"^MOSA_PRECISION=fp32: openvino-bf16 does not compute in it"):
        choose("openvino-bf16", "fp32")


def test_auto_goes_without_an_openvino_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    HostGpu().install(monkeypatch, capability=None)
    pretend_openvino(monkeypatch, "2024.6")
    assert {mode.runner for mode in choose("auto").contenders} == {"onnxruntime-cpu"}
    assert any(line.startswith("OpenVINO is not used: OpenVINO 2024.6 is installed") for line in said.messages)


def test_batches_are_padded_for_gpus_alone() -> None:
    padding = {name: ExecutionPlan(name, "fp32", (1, 2)).padding for name in RUNNERS}
    gpu = {"onnxruntime-cuda": 0.25, "tensorrt": 0.25}
    assert padding == {"onnxruntime-cpu": 0, "openvino": 0, "openvino-bf16": 0, **gpu}
