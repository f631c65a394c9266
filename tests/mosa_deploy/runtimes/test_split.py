"""Batches in parts: who runs which images, at the same time, and with the same answers as a whole batch."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import RunnerName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.pool import Pool
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from mosa_deploy.runtimes.split import SplitRunner
from tests.support.runners import NotingRunner

LAYOUT = Layout(BlockTopology(2, 24))


class Doubling(NotingRunner):
    """Doubles its input. Waits until `together` runs go on at once, and fails on 13."""

    def __init__(self, together: int = 1, seconds: float = 0.0) -> None:
        super().__init__()
        self.started, self.seconds = threading.Barrier(together, timeout=10), seconds
        self.ran: list[list[float]] = []
        self.going_on = 0

    def run(self, *inputs: NDArray[Any]) -> Array:
        self.going_on += 1
        self.started.wait()
        self.ran.append(inputs[0].tolist())
        if 13 in inputs[0]:
            self.going_on -= 1
            raise ValueError("thirteen")
        time.sleep(self.seconds)
        self.going_on -= 1
        return np.asarray(2 * inputs[0], dtype=np.float32)


def numbers(count: int) -> Array:
    return np.arange(count, dtype=np.float32)


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (6, [2, 2, 2]), (8, [2, 3, 3])])
def test_parts_of_equal_size_run_at_the_same_time(count: int, sizes: list[int]) -> None:
    whole, parts = Doubling(), Doubling(together=3)
    found = SplitRunner(whole, parts, 3).run(numbers(count))
    assert found.tolist() == [2 * number for number in range(count)]
    assert sorted(map(len, parts.ran)) == sizes
    assert not whole.ran


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_images_than_parts_run_as_a_whole(count: int) -> None:
    whole, parts = Doubling(), Doubling()
    assert len(SplitRunner(whole, parts, 3).run(numbers(count))) == count
    assert whole.ran == [list(range(count))]
    assert not parts.ran


@pytest.mark.parametrize("bad", [0, 1])
def test_a_fault_is_raised_once_no_part_reads_any_more(bad: int) -> None:
    parts, given = Doubling(together=2, seconds=0.2), numbers(2)
    given[bad] = 13
    with pytest.raises(ValueError, match="thirteen"):
        SplitRunner(Doubling(), parts, 2).run(given)
    assert len(parts.ran) == 2
    assert parts.going_on == 0


def test_both_runners_know_what_is_bound_and_what_changed() -> None:
    whole, parts = Doubling(), Doubling()
    split, tensors = SplitRunner(whole, parts, 2), {"bank": numbers(3)}
    split.bind(tensors)
    split.refresh(tensors, [1])
    assert whole.bound == parts.bound == [tensors]
    assert whole.refreshed == parts.refreshed == [[1]]


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino", "openvino-bf16"])
def test_parts_give_the_answers_of_a_whole_batch_and_see_every_change_of_a_slot(traced: Path, name: RunnerName) -> None:
    if name != "onnxruntime-cpu":
        pytest.importorskip("openvino")
    bank, path = Bank(LAYOUT, bottleneck=4, capacity=2), traced / "shared.onnx"
    parts = open_runner(path, name, threads=1, spinning=False, streams=3)
    whole = SharedRunner(open_runner(path, name, threads=1), bank)
    split = SharedRunner(SplitRunner(open_runner(path, name, threads=1), parts, 3), bank)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((7, 3, 28, 28), dtype=np.float32)
    before: Array | None = None
    for bottleneck in (4, 4, 9):  # The last one makes the bank grow.
        rows = LAYOUT.shapes(bottleneck).items()
        slot = bank.write({name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in rows})
        slots = np.array([slot, 0, slot, 0, 0, slot, slot])
        wanted, found = whole.run(images, slots), split.run(images, slots)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert before is None or np.abs(found - before).max() > 0.1 * np.abs(wanted).max()
        before = found


def test_bound_runs_go_on_at_the_same_time(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, together = Bank(LAYOUT, bottleneck=4), threading.Barrier(3, timeout=10)
    runner = OnnxRunner(traced / "shared.onnx", threads=1)
    shared, run = SharedRunner(runner, bank), runner.session.run_with_iobinding
    monkeypatch.setattr(runner.session, "run_with_iobinding", lambda binding: (together.wait(), run(binding)))
    with ThreadPoolExecutor(3) as threads:
        images = np.zeros((1, 3, 28, 28), dtype=np.float32)
        answers = list(threads.map(lambda _: shared.run(images, np.zeros(1, dtype=np.int64)), range(3)))
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_second_session_shares_the_threads_among_its_runs(traced: Path) -> None:
    runner = open_runner(traced / "plain.onnx", threads=6, streams=3)
    assert isinstance(runner, OnnxRunner)
    assert runner.session.get_session_options().intra_op_num_threads == 2


def test_a_pool_lends_no_thing_twice_and_makes_no_more_than_it_needs() -> None:
    pool = Pool(iter(range(10)).__next__)
    for _ in range(2):
        with pool.one() as first, pool.one() as second:
            assert {first, second} == {0, 1}
    with pool.one(), pool.one(), pool.one() as third:
        assert third == 2


def test_a_pool_does_not_lend_again_what_failed() -> None:
    pool = Pool(iter(range(10)).__next__)
    with contextlib.suppress(ValueError), pool.one():
        raise ValueError
    with pool.one() as thing:
        assert thing == 1
