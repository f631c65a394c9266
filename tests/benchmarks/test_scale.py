"""The model of `benchmarks.scale` against formulas, and the page against what was committed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import END, PAGE, START, Config, into_page, read_measured
from benchmarks.scale_measurement import Measured
from benchmarks.scale_report import million, report
from benchmarks.scale_simulation import Bank, Load, Replica, che, needed, serve, simulate
from mosa_deploy.errors import ConfigError
from tests.support.walker import ROOT

ALL = 1_000_000
"""Slots for any number of tasks."""


def pollaczek_khinchine(rate: float, times: dict[float, float]) -> float:
    """The mean time to the answer of M/G/1: E[S] + rate * E[S**2] / (2 * (1 - rate * E[S])); S -> its probability."""
    first = sum(time * share for time, share in times.items())
    second = sum(time**2 * share for time, share in times.items())
    return first + rate * second / (2 * (1 - rate * first))


@pytest.mark.parametrize("busy", [0.3, 0.7])
@pytest.mark.parametrize("replicas", [1, 4])
def test_without_batches_and_loads_it_is_m_d_1(busy: float, replicas: int) -> None:
    each = 0.01
    load = Load(rate=replicas * busy / each, tasks=50, seconds=80_000 * each / busy / replicas)
    found = simulate(load, Replica(0, each, 1, ALL, max_batch=1), replicas)
    assert found.hits == 1
    assert found.mean == pytest.approx(pollaczek_khinchine(busy / each, {each: 1}), rel=0.04)
    assert found.busy == pytest.approx(busy, rel=0.04)
    assert found.batch == 1


def test_with_loads_and_equal_popularity_it_is_m_g_1() -> None:
    # Of equally popular tasks 3 of 10 are always loaded, whatever was asked: hits are independent of each other.
    rate, each, loading = 20.0, 0.01, 0.04
    load = Load(rate, tasks=10, exponent=0, seconds=5_000)
    found = simulate(load, Replica(0, each, loading, 3, max_batch=1), 1)
    assert found.hits == pytest.approx(0.3, abs=0.01)
    assert found.mean == pytest.approx(pollaczek_khinchine(rate, {each: 0.3, each + loading: 0.7}), rel=0.05)


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("slots", [100, 1000])
def test_hits_are_those_of_che_s_approximation(exponent: float, slots: int) -> None:
    load = Load(1000, 10_000, exponent, seconds=60)
    found = simulate(load, Replica(0, 1e-6, 1e-6, slots), 2)
    assert found.hits == pytest.approx(che(load, slots), abs=0.01)


def test_che_s_approximation_is_exact_where_tasks_are_equal_or_all_fit() -> None:
    assert che(Load(tasks=100, exponent=0), 25) == pytest.approx(0.25)
    assert che(Load(tasks=100), 100) == 1


def test_a_batch_takes_what_waits_up_to_its_most_and_loads_one_task_after_the_other() -> None:
    replica = Replica(fixed=1.0, each=0.5, load=10.0, slots=2, max_batch=3)
    run = serve([0, 0.1, 0.2, 0.3, 0.4, 100], [1, 1, 2, 2, 3, 2], replica, Bank(2))
    # The first runs alone: 10 + 1 + 0.5. Then 1, 2 and 2: 10 + 1 + 1.5. Then 3: it takes the place of 1. Then 2.
    ends = [11.5, 24, 24, 24, 35.5, 101.5]
    assert run.seconds == pytest.approx(
        [end - time for end, time in zip(ends, [0, 0.1, 0.2, 0.3, 0.4, 100], strict=True)]
    )
    assert (run.hits, run.batches) == (3, 4)
    assert run.worked == pytest.approx(11.5 + 12.5 + 11.5 + 1.5)


def test_the_task_that_was_used_longest_ago_goes_first() -> None:
    bank = Bank(2)
    assert [bank.ask(task) for task in (1, 2, 1, 3, 1, 2)] == [False, False, True, False, True, False]


def test_a_task_s_own_replica_makes_the_slots_of_all_add_up() -> None:
    load, replica = Load(1000, 10_000, seconds=60), Replica(0, 1e-6, 1e-6, 500)
    apart, anywhere = simulate(load, replica, 8, "by task"), simulate(load, replica, 8)
    assert anywhere.hits == pytest.approx(che(load, 500), abs=0.01)
    assert apart.hits == pytest.approx(che(load, 8 * 500), abs=0.02)
    assert apart.busy > anywhere.busy


@pytest.mark.parametrize("p99", [0.1, 0.03])
def test_no_smaller_number_of_replicas_is_enough(p99: float) -> None:
    load, replica = Load(1000, 100, seconds=30), Replica(0.001, 0.004, 0.02, ALL)
    found = needed(load, replica, p99)
    assert found is not None
    assert found.p99 <= p99
    assert found == simulate(load, replica, found.replicas)
    assert simulate(load, replica, found.replicas - 1).p99 > p99
    # Full batches run at 248 images per second, so 4 replicas cannot do it in the long run.
    assert replica.most == pytest.approx(32 / 0.129)
    assert found.replicas >= 5


def test_with_a_replica_for_each_task_the_first_that_is_enough_is_taken() -> None:
    load, replica = Load(1000, 500, seconds=10), Replica(0.001, 0.003, 0.02, ALL)
    found = needed(load, replica, 0.1, "by task")
    assert found is not None
    assert found.p99 <= 0.1
    assert all(simulate(load, replica, fewer, "by task").p99 > 0.1 for fewer in range(4, found.replicas))
    # The first task of 500 has 15 of 100 requests, which is more than one core of 80 images per second can answer.
    assert needed(load, Replica(0.001, 0.0125, 0.02, ALL), 0.1, "by task") is None


def test_what_no_number_of_replicas_can_do_is_said() -> None:
    assert needed(Load(10, 10, seconds=10), Replica(1.0, 0, 0, ALL), 0.5) is None


MEASURED = Measured(
    "tiny", "onnxruntime-cpu in int8: 64", 64, 16, "320 x 240", 100, 200, 150, 300, 350, 0.005, 0.02, 2e8, 1e6
)


def test_a_batch_of_one_and_one_of_sixteen_take_what_was_measured() -> None:
    assert MEASURED.fixed + MEASURED.each == pytest.approx(1 / 100)
    assert MEASURED.fixed + 16 * MEASURED.each == pytest.approx(16 / 200)
    # One alone that is faster than one of many leaves nothing for the batch.
    odd = replace(MEASURED, alone=250)
    assert odd.fixed == pytest.approx(0)
    assert odd.each == pytest.approx(1 / 200)


def test_tasks_fit_by_their_bytes_and_images_cost_by_their_time() -> None:
    assert MEASURED.tasks_in(1e9) == 801
    assert MEASURED.tasks_in(1e8) == 0
    # 100 images/s are 360,000 in an hour.
    assert million(0.36, 100) == pytest.approx(1.0)


def test_the_figures_go_between_the_marks_of_the_page() -> None:
    assert into_page(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\n\nnew\n\n{END}\nb"
    with pytest.raises(ConfigError, match="the page has no"):
        into_page("a page", "new")


def test_the_page_says_what_was_committed() -> None:
    folder = ROOT / Config().out
    text = report(read_measured(folder), json.loads((folder / "simulated.json").read_text()))
    page = (ROOT / PAGE).read_text()
    assert page == into_page(page, text)
    assert (folder / "scale.md").read_text() == f"# Capacity\n\n{text}\n"


def test_what_was_not_measured_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave the option out to measure"):
        read_measured(tmp_path)


def test_popularity_is_zipf_s() -> None:
    found = Load(tasks=4, exponent=1).popularity
    assert np.allclose(found, np.array([1, 1 / 2, 1 / 3, 1 / 4]) / math.fsum([1, 1 / 2, 1 / 3, 1 / 4]))
