import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.engines import BankLimits, Request, choose_backend, shape_range
from export.fp16 import to_fp16
from export.int8 import to_int8
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError, ProviderError
from mosa_deploy.runtimes.names import Precision
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.tensorrt import EngineRunner, load_engine
from mosa_deploy.runtimes.tensorrt_record import EngineRecord
from tests.support.graphs import noise, random_bank

RTX = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


@pytest.fixture
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real library, on a machine without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("export.engines.device_capability", lambda: None)
    return choose_backend("tensorrt_rtx", tmp_path / "cache")


def test_images_and_slots_have_the_profile_s_batch_and_banks_a_range() -> None:
    limits = BankLimits(slots=40, bottleneck=8)
    assert shape_range("images", (-1, 3, 28, 28), 8, limits) == ((8, 3, 28, 28),) * 3
    assert shape_range("slots", (-1,), 8, limits) == ((8,),) * 3
    assert shape_range("blocks.0.down", (-1, 24, -1), 8, limits) == ((1, 24, 1), (16, 24, 8), (40, 24, 8))
    assert shape_range("blocks.0.up_bias", (-1, 24), 1, limits) == ((1, 24), (16, 24), (40, 24))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("graph", ["plain.onnx", "shared.onnx"])
def test_an_engine_of_either_lane_is_built_without_a_gpu(
    rtx: Any, traced: Path, tmp_path: Path, graph: str, precision: Precision
) -> None:
    path = traced / graph
    if precision == "int8":
        if graph == "shared.onnx":
            pytest.skip("the shared graph is quantised in test_formats")
        path = tmp_path / "int8.onnx"
        onnx.save(to_int8(onnx.load(traced / graph), [{"images": noise(16)}], "tensorrt"), path)
    engine = rtx.build(Request(path, precision, (1, 4), "sm86", BankLimits(4, 8)))
    weights = sum(np.prod(t.dims) for t in onnx.load(traced / graph).graph.initializer)
    assert len(engine) > 2 * weights


def test_the_default_int8_of_onnx_runtime_is_refused_by_the_library(rtx: Any, traced: Path, tmp_path: Path) -> None:
    onnx.save(to_int8(onnx.load(traced / "plain.onnx"), [{"images": noise(16)}], "cpu"), tmp_path / "cpu.onnx")
    with pytest.raises(ProviderError, match=r"^tensorrt_rtx cannot (read|build) cpu\.onnx") as caught:
        rtx.build(Request(tmp_path / "cpu.onnx", "int8", (1,), "sm86", BankLimits()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["sm90", "sm8", "ampere", "SM86"])
def test_an_unknown_capability_lists_the_known(rtx: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown --compute-capability {wanted}; known to tensorrt_rtx [\d.]+: "):
        rtx.target(wanted)
    assert [rtx.target(known) for known in RTX] == list(RTX)


def test_without_a_gpu_the_capability_must_be_named(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^no GPU is here to build for: name one with --compute-capability; known"):
        rtx.target(None)
    monkeypatch.setattr("export.engines.device_capability", lambda: "sm89")
    assert (rtx.target(None), rtx.target("sm75")) == ("sm89", "sm75")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            None,
            r"^no TensorRT is installed: pip install 'mosa-deploy\[tensorrt-rtx\]', or 'mosa-deploy\[tensorrt\]' for",
        ),
        ("tensorrt", r"^tensorrt is not installed: pip install 'mosa-deploy\[tensorrt\]'$"),
        ("tensorrt_rtx", r"^tensorrt_rtx is not installed: pip install 'mosa-deploy\[tensorrt-rtx\]'$"),
    ],
)
def test_a_library_that_is_not_installed_names_the_extra(
    name: str | None, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ProviderError, match=line):
        choose_backend(name, tmp_path / "cache")


def test_a_library_that_does_not_load_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.11: no such file\nand more")

    monkeypatch.setattr("mosa_deploy.runtimes.tensorrt_library.importlib.import_module", broken)
    with pytest.raises(
        ProviderError, match=r"^tensorrt does not load \(libnvinfer\.so\.11: no such file\): install it"
    ):
        choose_backend("tensorrt", tmp_path / "cache")


class FakeTensorRt(types.ModuleType):
    """As much of NVIDIA's library as a build asks for; it records what it is told."""

    def __init__(self, refuses_cache: bool = False) -> None:
        super().__init__("tensorrt")
        self.__version__ = "11.4.0"
        self.told: list[Any] = []
        self.refuses_cache = refuses_cache
        self.Logger = type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None})
        self.BuilderFlag = types.SimpleNamespace(TF32="TF32")
        # Every network of TensorRT 11 is strongly typed: the flag is gone.
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace()
        self.OnnxParser = lambda network, logger: types.SimpleNamespace(parse=lambda content: True)
        self.Builder = lambda logger: self

    def create_network(self, flags: int) -> Any:
        self.told.append(("network", flags))
        tensor = types.SimpleNamespace(name="images", shape=(-1, 3, 28, 28))
        return types.SimpleNamespace(num_inputs=1, get_input=lambda i: tensor)

    def create_builder_config(self) -> Any:
        fresh = [b"timings of this build"]

        def set_cache(cache: bytes, ignore: bool) -> bool:
            self.told.append(("cache", cache))
            return not (cache and self.refuses_cache)

        return types.SimpleNamespace(
            create_timing_cache=lambda content: content,
            set_timing_cache=set_cache,
            get_timing_cache=lambda: types.SimpleNamespace(serialize=lambda: fresh[0]),
            clear_flag=lambda flag: self.told.append(("cleared", flag)),
            add_optimization_profile=lambda profile: None,
        )

    def create_optimization_profile(self) -> Any:
        return types.SimpleNamespace(set_shape=lambda *shapes: self.told.append(("profile", *shapes)))

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"engine"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    module = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("export.engines.device_capability", lambda: "sm90")
    return module


def test_nvidia_s_own_builds_for_the_gpu_that_is_here_alone(
    fake: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = choose_backend("tensorrt", tmp_path / "cache")
    assert (backend.target(None), backend.target("sm90")) == ("sm90", "sm90")
    with pytest.raises(
        ConfigError, match=r"^--compute-capability sm86: .*known: sm90; .*--engine-backend tensorrt_rtx"
    ):
        backend.target("sm86")
    monkeypatch.setattr("export.engines.device_capability", lambda: None)
    with pytest.raises(
        ConfigError, match=r"^tensorrt builds on the GPU .*here is none: add --engine-backend tensorrt_"
    ):
        backend.target("sm90")


def test_timings_are_kept_for_the_next_build(fake: FakeTensorRt, traced: Path, tmp_path: Path) -> None:
    backend = choose_backend("tensorrt", tmp_path / "cache")
    request = Request(traced / "plain.onnx", "fp32", (1, 8), "sm90", BankLimits())
    assert backend.build(request) == b"engine"
    shapes = [((size, 3, 28, 28),) * 3 for size in (1, 8)]
    assert [call for call in fake.told if call[0] == "profile"] == [("profile", "images", *shape) for shape in shapes]
    assert ("network", 0) in fake.told
    assert ("cleared", "TF32") in fake.told
    backend.build(request)
    assert [call[1] for call in fake.told if call[0] == "cache"] == [b"", b"timings of this build"]


def test_timings_of_another_gpu_are_dropped(fake: FakeTensorRt, traced: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"of another")
    fake.refuses_cache = True
    backend = choose_backend("tensorrt", tmp_path / "cache")
    backend.build(Request(traced / "plain.onnx", "fp16", (1,), "sm90", BankLimits()))
    assert [call[1] for call in fake.told if call[0] == "cache"] == [b"of another", b""]
    assert ("cleared", "TF32") not in fake.told
    assert (tmp_path / "cache").read_bytes() == b"timings of this build"


OpenEngine = Callable[[str, Precision], EngineRunner]


@pytest.fixture
def open_engine(traced: Path, tmp_path: Path) -> OpenEngine:
    """Builds a traced graph for the GPU that is here, and opens the engine."""
    try:
        backend = choose_backend(None, tmp_path / "cache")
        capability = backend.target(None)
    except (ConfigError, ProviderError) as missing:
        pytest.skip(str(missing))

    def build(name: str, precision: Precision) -> EngineRunner:
        graph, path, engine = onnx.load(traced / name), tmp_path / name, tmp_path / f"{name}.engine"
        onnx.save(to_fp16(graph) if precision == "fp16" else graph, path)
        engine.write_bytes(backend.build(Request(path, precision, (1, 4), capability, BankLimits(16, 16))))
        record = EngineRecord(
            library=backend.library,
            version=backend.version,
            precision=precision,
            capability=capability,
            batch_sizes=(1, 4),
            bank=None,
            onnx=name,
            onnx_sha256="",
            sha256="",
            parity="deferred",
        )
        return load_engine(engine, record)

    return build


def assert_near(given: Array, wanted: Array, precision: Precision) -> None:
    tolerance = {"fp32": 1e-4, "fp16": 2e-2}[precision]
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_task_s_engine_on_its_gpu_answers_as_the_onnx_file(
    traced: Path, open_engine: OpenEngine, precision: Precision
) -> None:
    engine, reference = open_engine("plain.onnx", precision), OnnxRunner(traced / "plain.onnx")
    for batch in (1, 3, 4, 1, 2):
        assert_near(engine.run(noise(batch)), reference.run(noise(batch)), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_shared_engine_on_its_gpu_answers_as_the_onnx_file_with_any_bank(
    traced: Path, open_engine: OpenEngine, precision: Precision
) -> None:
    engine, reference = open_engine("shared.onnx", precision), OnnxRunner(traced / "shared.onnx")
    for bank in (random_bank(), random_bank(9, 5)):
        engine.bind(bank.tensors)
        reference.bind(bank.tensors)
        for batch in (1, 3, 4, 1, 2):
            slots = np.arange(batch) % 3
            assert_near(engine.run(noise(batch), slots), reference.run(noise(batch), slots), precision)
