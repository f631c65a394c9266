"""Which batch sizes a lane keeps, found by the times of its own runs."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mosa_deploy.client.schema import LaneName
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.split import SplitRunner
from serving.lanes import AnyLane
from serving.settings import Settings
from serving.warming import LONG, Parts, split_if_faster, worthwhile
from tests.support.app import Reference, named, passes, running

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
    assert [*worthwhile(STEPS, run)] == [*STEPS]


def test_equal_times_keep_all_sizes() -> None:
    run, _ = per_image(dict.fromkeys(STEPS, 2.0))
    assert [*worthwhile(STEPS, run)] == [*STEPS]


def test_nothing_larger_is_run_after_two_sizes_that_do_not_pay() -> None:
    run, ran = per_image({1: 5.0, 2: 4.0, 3: 4.1, 4: 4.0, 6: 4.5, 8: 5.0, 12: 3.0})
    assert [*worthwhile(STEPS, run)] == [1, 2, 3, 4]
    assert max(ran) == 8


def test_one_slow_size_between_fast_ones_is_left_out() -> None:
    run, _ = per_image({size: 3.0 if size == 3 else 1.0 for size in STEPS})
    assert [*worthwhile(STEPS, run)] == [size for size in STEPS if size != 3]


def test_the_first_run_of_a_size_does_not_count_alone() -> None:
    run, _ = per_image(dict.fromkeys(STEPS, 2.0), noise=0.5)
    assert [*worthwhile(STEPS, run)] == [*STEPS]


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


class Timed:
    """A lane whose time per image is given, by size, for whole batches and for those in parts."""

    kind: LaneName = "shared"
    sizes = STEPS

    def __init__(self, whole: dict[int, float], parts: dict[int, float]) -> None:
        self.whole, self.parts = whole, parts
        self.graph = cast(Runner, SimpleNamespace(precision="fp32"))
        self.ran: list[int] = []

    @property
    def split(self) -> bool:
        return isinstance(self.graph, SplitRunner)

    def use(self, graph: Runner) -> None:
        self.graph = graph

    def run(self, size: int) -> float:
        self.ran.append(size)
        return size * (self.parts if self.split else self.whole)[size]

    def sizes_in(self, count: int) -> list[int]:
        """The sizes that it takes if its batches may run in so many parts."""
        return self.sizes_after(worthwhile(STEPS, self.run), count)

    def sizes_after(self, whole: dict[int, float], count: int) -> list[int]:
        """The same, with what was measured of whole batches."""
        self.ran = []
        return list(split_if_faster(cast(AnyLane, self), whole, Parts(count, lambda: self.graph), self.run))


ONES = dict.fromkeys(range(1, 33), 1.0)


@pytest.mark.parametrize(("share", "split"), [(0.5, True), (0.94, True), (0.96, False), (2.0, False)])
def test_a_second_session_stays_only_where_it_gains_a_twentieth(share: float, split: bool) -> None:
    lane = Timed(ONES, dict.fromkeys(ONES, share))
    assert lane.sizes_in(2) == ([1, 2, 4, 8] if split else [*STEPS])
    assert lane.split == split


def test_what_ran_beside_whole_batches_alone_decides_nothing() -> None:
    lane = Timed(dict.fromkeys(ONES, 2.0), ONES)
    whole, lane.whole = worthwhile(STEPS, lane.run), ONES
    assert lane.sizes_after(whole, 2) == [*STEPS]
    assert not lane.split


def test_parts_of_more_images_are_left_out_where_they_take_longer() -> None:
    lane = Timed(ONES, {2: 0.80, 4: 0.82, 8: 0.84})
    assert lane.sizes_in(2) == [1, 2, 4]


@pytest.mark.parametrize(("count", "sizes"), [(5, [1, 2, 3, 4, 5, 10, 20]), (16, [1, 2, 3, 4, 6, 8, 12, 16, 32])])
def test_batches_that_would_leave_a_core_without_an_image_run_as_a_whole(count: int, sizes: list[int]) -> None:
    lane = Timed(ONES, dict.fromkeys(ONES, 0.5))
    assert lane.sizes_in(count) == sizes
    assert set(lane.ran) == {1, *(size for size in sizes if size >= count)}


@pytest.mark.parametrize(("gain", "ending"), [(math.inf, "; from 2 on in 2 parts"), (0.0, "")])
def test_a_service_answers_right_whether_batches_run_in_parts_or_not(
    copied: Path,
    said: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reference: Reference,
    gain: float,
    ending: str,
) -> None:
    monkeypatch.setattr("serving.warming.GAIN", gain)
    images, tasks = reference.maker.images, ("birds", "cracks", "grains", "birds") * 4
    with (
        running(copied, max_batch=0, max_wait_ms=50, threads=2, folded="cracks") as client,
        passes(client) as sizes,
    ):
        files = [("image", (f"{i}.png", image)) for i, image in enumerate(images)]
        answers = client.post("/classify", files=files, data={"task": tasks, "top_k": "99"}).json()["results"]
    for i, (task, answer) in enumerate(zip(tasks, answers, strict=True)):
        found = {each["label"]: each["score"] for each in answer["predictions"]}
        assert found == pytest.approx(named(reference.archives[task], reference.offline[task][i]), abs=1e-5)
    assert max(sizes) > 1
    lines = [record.getMessage() for record in said.records if "takes batches of" in record.getMessage()]
    assert {line.split()[1] for line in lines} == {"shared", "folded"}
    assert all(line.endswith(ending) and ("parts" in line) == bool(ending) for line in lines)
