"""Which batch sizes a lane keeps, found by the times of its own runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.settings import Settings
from serving.warming import LONG, worthwhile
from tests.support.app import running

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def per_image(milliseconds: dict[int, float], noise: float = 0.0) -> tuple[Callable[[int], float], list[int]]:
    """A run whose time per image is given by size, and the sizes that it ran. Every first run is slower by `noise`."""
    ran: list[int] = []

    def run(size: int) -> float:
        first = size not in ran
        ran.append(size)
        return size * milliseconds[size] / 1000 * (1 + noise * first)

    return run, ran


def test_all_sizes_are_kept_where_larger_batches_are_faster() -> None:
    run, _ = per_image({size: 1 + 4 / size for size in STEPS})
    assert worthwhile(STEPS, run) == [*STEPS]


def test_equal_times_keep_all_sizes() -> None:
    run, _ = per_image(dict.fromkeys(STEPS, 2.0))
    assert worthwhile(STEPS, run) == [*STEPS]


def test_nothing_larger_is_run_after_two_sizes_that_do_not_pay() -> None:
    run, ran = per_image({1: 5.0, 2: 4.0, 3: 4.1, 4: 4.0, 6: 4.5, 8: 5.0, 12: 3.0})
    assert worthwhile(STEPS, run) == [1, 2, 3, 4]
    assert max(ran) == 8


def test_one_slow_size_between_fast_ones_is_left_out() -> None:
    run, _ = per_image({size: 3.0 if size == 3 else 1.0 for size in STEPS})
    assert worthwhile(STEPS, run) == [size for size in STEPS if size != 3]


def test_the_first_run_of_a_size_does_not_count_alone() -> None:
    run, _ = per_image(dict.fromkeys(STEPS, 2.0), noise=0.5)
    assert worthwhile(STEPS, run) == [*STEPS]


def test_a_long_run_is_not_repeated() -> None:
    run, ran = per_image(dict.fromkeys(STEPS, 1100 * LONG))
    worthwhile(STEPS, run)
    assert ran == [*STEPS]


def test_a_service_says_which_sizes_it_found(copied: Path, said: pytest.LogCaptureFixture) -> None:
    with running(copied, max_batch=0):
        pass
    found = [record.getMessage() for record in said.records if "takes batches of" in record.getMessage()]
    assert found
    for line in found:
        lane, _, sizes = line.partition(" takes batches of ")
        assert lane == "the shared lane by onnxruntime-cpu in fp32"
        first, *others = map(int, sizes.split(", "))
        assert first == 1
        assert set(others) < set(STEPS)


def test_what_the_user_sets_is_not_replaced_by_a_measurement(copied: Path, said: pytest.LogCaptureFixture) -> None:
    with running(copied, max_batch=5):
        pass
    assert not [record for record in said.records if "takes batches of" in record.getMessage()]
    assert Settings(max_batch=5).largest_batch == 5
    assert Settings().largest_batch == STEPS[-1]
