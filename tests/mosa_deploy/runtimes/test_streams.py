"""Runners for several runs at once: their answers, and what they share."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import RunnerName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.pool import Pool
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner

LAYOUT = Layout(BlockTopology(2, 24))


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino", "openvino-bf16"])
def test_runs_at_once_answer_as_one_run_does_and_see_every_change_of_a_slot(traced: Path, name: RunnerName) -> None:
    if name != "onnxruntime-cpu":
        pytest.importorskip("openvino")
    bank, path = Bank(LAYOUT, bottleneck=4, capacity=2), traced / "shared.onnx"
    whole = SharedRunner(open_runner(path, name, threads=1), bank)
    streamed = SharedRunner(open_runner(path, name, threads=3, spinning=False, streams=3), bank)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((7, 3, 28, 28), dtype=np.float32)
    before: Array | None = None
    for bottleneck in (4, 4, 9):  # The last one makes the bank grow.
        rows = LAYOUT.shapes(bottleneck).items()
        slot = bank.write({name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in rows})
        slots = np.array([slot, 0, slot, 0, 0, slot, slot])
        parts = [np.array_split(each, 3) for each in (images, slots)]
        with ThreadPoolExecutor(3) as threads:
            wanted, found = whole.run(images, slots), np.concatenate(list(threads.map(streamed.run, *parts)))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert before is None or np.abs(found - before).max() > 0.1 * np.abs(wanted).max()
        before = found


def test_bound_runs_go_on_at_the_same_time(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, together = Bank(LAYOUT, bottleneck=4), threading.Barrier(3, timeout=10)
    runner = OnnxRunner(traced / "shared.onnx", threads=1)
    shared, run = SharedRunner(runner, bank), runner.session.run_with_iobinding
    monkeypatch.setattr(runner.session, "run_with_iobinding", lambda *given: (together.wait(), run(*given)))
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
