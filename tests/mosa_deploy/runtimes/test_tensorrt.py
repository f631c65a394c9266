"""The engine runner on a device of numpy; `tests/export/test_engines.py` has it on a GPU."""

import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError, ParityError, ProviderError, StoreError
from mosa_deploy.runtimes.cuda import Device
from mosa_deploy.runtimes.tensorrt import EngineRunner, open_engine, prove
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, write_record
from mosa_deploy.utils.files import sha256
from tests.support.host_gpu import HostDevice

LIMITS = {"images": (8, 3, 2, 2), "slots": (8,), "bank": (4, 3, 5)}


class HostEngine:
    """An engine whose answer is: the mean of each channel, through the sample's slot of the bank if there is one."""

    def __init__(self, device: HostDevice, shared: bool) -> None:
        self.device = device
        self.names = ["images", "slots", "bank", "answer"] if shared else ["images", "answer"]
        self.num_io_tensors = len(self.names)
        self.contexts: list[HostContext] = []
        self.runs = True

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> Any:
        return types.SimpleNamespace(name="OUTPUT" if name == "answer" else "INPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name="INT64" if name == "slots" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"images": (-1, 3, 2, 2), "slots": (-1,), "bank": (-1, 3, -1)}[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return LIMITS[name], LIMITS[name], LIMITS[name]

    def create_execution_context(self) -> "HostContext":
        self.contexts.append(HostContext(self))
        return self.contexts[-1]


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = -1

    def set_optimization_profile_async(self, index: int, stream: int) -> None:
        assert stream == HostDevice.stream
        self.profile = index

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "answer"
        width = self.shapes["bank"][2] if "bank" in self.shapes else 3
        return self.shapes["images"][0], width

    def execute_async_v3(self, stream: int) -> bool:
        memory = self.engine.device.memory

        def work() -> None:
            values = {name: memory[address] for name, address in self.addresses.items()}
            means = values["images"].mean(axis=(2, 3))
            if "bank" in values:
                means = np.einsum("bc,bcr->br", means, values["bank"][values["slots"]])
            values["answer"][...] = means

        self.engine.device.do(work)
        return self.engine.runs


def record(*sizes: int) -> EngineRecord:
    return EngineRecord(
        library="tensorrt_rtx",
        version="1.7",
        precision="fp16",
        capability="sm86",
        batch_sizes=sizes,
        bank=None,
        onnx="folded.fp16.onnx",
        onnx_sha256="",
        sha256="",
        parity="deferred",
    )


def runner(shared: bool = False, sizes: tuple[int, ...] = (2, 8)) -> tuple[EngineRunner, HostDevice, HostEngine]:
    device = HostDevice()
    engine = HostEngine(device, shared)
    # Only what the runner asks for is there.
    return EngineRunner(engine, device, record(*sizes), "an.engine"), device, engine  # type: ignore[arg-type]  # a stand-in of numpy


def images(batch: int, seed: int = 0) -> Array:
    return np.random.default_rng([batch, seed]).standard_normal((batch, 3, 2, 2)).astype(np.float32)


def bank(slots: int, bottleneck: int, seed: int = 0) -> dict[str, Array]:
    return {"bank": np.random.default_rng(seed).standard_normal((slots, 3, bottleneck)).astype(np.float32)}


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_batch_of_any_size_gets_its_own_rows(batch: int) -> None:
    tried = runner()[0]
    for seed in range(3):
        found = tried.run(images(batch, seed))
        assert (found.shape, found.dtype) == ((batch, 3), np.dtype(np.float32))
        np.testing.assert_allclose(found, images(batch, seed).mean(axis=(2, 3)), rtol=1e-6)


def test_an_answer_outlives_the_next_run() -> None:
    tried = runner()[0]
    first = tried.run(images(2))
    kept = first.copy()
    tried.run(images(2, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_each_size_has_one_context_in_its_profile_and_one_graph_which_later_runs_launch() -> None:
    tried, device, engine = runner()
    for batch in (1, 2, 5, 8, 1, 7):
        tried.run(images(batch))
    assert [context.profile for context in engine.contexts] == [0, 1]
    assert [context.shapes["images"][0] for context in engine.contexts] == [2, 8]
    assert (device.captures, device.launches) == (2, 4)


def test_the_batch_is_padded_with_zeros_and_not_with_the_last_one_s_images() -> None:
    tried, device, engine = runner()
    tried.run(images(8))
    tried.run(images(3))
    (context,) = engine.contexts
    held = device.memory[context.addresses["images"]]
    np.testing.assert_array_equal(held[:3], images(3))
    assert not held[3:].any()


def test_a_batch_outside_the_profiles_names_them_and_the_flag() -> None:
    tried = runner()[0]
    with pytest.raises(ConfigError, match=r"^an\.engine: a batch of 9 is outside its profiles \(2, 8\): .*-sizes .* 9"):
        tried.run(images(9))


def test_a_bank_is_copied_when_it_is_bound_and_never_in_a_run() -> None:
    tried, device, engine = runner(shared=True)
    own, slots = bank(3, 4), np.array([2, 0])
    tried.bind(own)
    place = tried.bound["bank"].address
    assert device.uploads == [place]
    for seed in range(3):
        found = tried.run(images(2, seed), slots)
        np.testing.assert_allclose(
            found, np.einsum("bc,bcr->br", images(2, seed).mean(axis=(2, 3)), own["bank"][slots]), rtol=1e-5
        )
    assert device.uploads.count(place) == 1
    assert engine.contexts[0].addresses["bank"] == place


def test_a_bank_bound_anew_keeps_its_place_and_the_graphs_until_it_grows() -> None:
    tried, device, _ = runner(shared=True)
    slots = np.array([1, 0])

    def check(given: dict[str, Array]) -> None:
        tried.bind(given)
        wanted = np.einsum("bc,bcr->br", images(2).mean(axis=(2, 3)), given["bank"][slots])
        np.testing.assert_allclose(tried.run(images(2), slots), wanted, rtol=1e-5)

    check(bank(2, 4))
    check(bank(2, 4, seed=1))
    assert device.captures == 1
    check(bank(4, 4, seed=2))
    assert device.captures == 2
    check({"bank": bank(4, 4, seed=3)["bank"][:, ::-1]})


def test_a_slot_that_changed_is_copied_alone() -> None:
    tried, device, _ = runner(shared=True)
    own, slots = bank(3, 4), np.array([2, 1])
    tried.bind(own)
    tried.run(images(2), slots)
    own["bank"][1:] = bank(3, 4, seed=1)["bank"][1:]
    device.uploads.clear()
    tried.refresh(own, [2])
    assert device.uploads == [tried.bound["bank"].address + 2 * own["bank"][2].nbytes]
    held = bank(3, 4)["bank"]
    held[2] = own["bank"][2]
    wanted = np.einsum("bc,bcr->br", images(2).mean(axis=(2, 3)), held[slots])
    np.testing.assert_allclose(tried.run(images(2), slots), wanted, rtol=1e-5)
    assert device.captures == 1


def test_a_bank_beyond_the_profile_names_the_flags() -> None:
    tried = runner(shared=True)[0]
    with pytest.raises(ProviderError, match=r"takes bank up to \(4, 3, 5\), the bank has \(5, 3, 5\): .*--bank-slots"):
        tried.bind(bank(5, 5))
    assert not tried.bound


def test_an_engine_that_does_not_run_is_one_line() -> None:
    tried, _, engine = runner()
    engine.runs = False
    with pytest.raises(StoreError, match=r"^an\.engine did not run: build it again"):
        tried.run(images(1))


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        runner(shared=True)[0].run(images(1))


def test_an_engine_s_device_is_asked_whether_it_is_lost() -> None:
    tried, device, _ = runner()
    assert not tried.device_lost()
    device.is_lost = True
    assert tried.device_lost()


@pytest.mark.parametrize(("error", "lost"), [(0, False), (719, True)])
def test_a_gpu_whose_every_call_fails_is_lost(error: int, lost: bool) -> None:
    device = Device.__new__(Device)
    success = types.SimpleNamespace(cudaSuccess=0)
    device.cuda = types.SimpleNamespace(cudaDeviceSynchronize=lambda: (error,), cudaError_t=success)
    assert device.lost() is lost


def test_threads_get_their_own_answers() -> None:
    tried = runner()[0]
    batches = [1, 2, 3, 5] * 20
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda batch: tried.run(images(batch)), batches)
        for batch, found in zip(batches, answers, strict=True):
            np.testing.assert_allclose(found, images(batch).mean(axis=(2, 3)), rtol=1e-6)


def with_canary(bundle: Bundle) -> tuple[Bundle, Bundle]:
    """The bundle with what the stand-in answers as its canary, and with other probabilities."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    preprocess = bundle.record.preprocess.model_copy(update={"size": (2, 2)})
    task = bundle.record.model_copy(update={"preprocess": preprocess, "temperature": 1.0})

    def softmax(inputs: Array) -> Array:
        exponent = np.exp(inputs.mean(axis=(2, 3)))
        return np.asarray(exponent / exponent.sum(axis=1, keepdims=True), dtype=np.float32)

    canary = Canary.record([encode(image) for image in pixels], preprocess, softmax)
    wrong = Canary(canary.images, canary.probabilities[:, ::-1].copy())
    return Bundle(task, bundle.tensors, canary), Bundle(task, bundle.tensors, wrong)


def test_the_canary_is_answered_in_batches_that_fit_and_a_wrong_answer_is_refused(bundle: Bundle) -> None:
    right, wrong = with_canary(bundle)
    tried = runner(sizes=(2,))[0]
    prove(tried, right)
    with pytest.raises(ParityError, match=r"^an\.engine misses its canary's probabilities by .*folded\.fp16\.onnx$"):
        prove(tried, wrong)


def test_an_engine_that_no_gpu_has_run_is_proved_when_it_is_opened(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, path = runner(sizes=(2,))[0], tmp_path / "folded.engine"
    monkeypatch.setattr("mosa_deploy.runtimes.tensorrt.load_engine", lambda *_: tried)
    path.write_bytes(b"an engine")
    deferred = record(2).model_copy(update={"sha256": sha256(path)})
    right, wrong = with_canary(bundle)
    for given, parity, holds in ((right, "deferred", True), (wrong, "deferred", False), (wrong, 1e-3, True)):
        given.save(tmp_path)
        write_record(path, deferred.model_copy(update={"parity": parity}))
        if holds:
            assert open_engine(path) is tried
        else:
            with pytest.raises(ParityError, match="misses its canary's probabilities"):
                open_engine(path)
