"""Which batch sizes a lane keeps, found by the times of its own runs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mosa_deploy.client.schema import LaneName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import Runner
from serving.items import Streams
from serving.lanes import AnyLane, ExecutionPlan
from serving.settings import Settings
from serving.warming import LONG, Offer, stream_if_faster, worthwhile
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
    with running(copied, runtime="onnxruntime-cpu", precision="fp32", max_batch=0):
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
    """A lane whose time per image is given, by size, for batches on all cores and for those in streams."""

    kind: LaneName = "shared"
    sizes = STEPS

    def __init__(self, alone: dict[int, float], streams: dict[int, float]) -> None:
        self.alone, self.in_streams = alone, streams
        self.plan = ExecutionPlan("onnxruntime-cpu", "fp32", STEPS)
        self.ran: list[int] = []

    @property
    def streams(self) -> Streams | None:
        return self.plan.streams

    def use_streams(self, runner: Runner | None, streams: Streams | None) -> None:
        assert (runner is None) == (streams is None)
        self.plan = replace(self.plan, streams=streams)

    def run(self, size: int) -> float:
        return size * self.alone[size]

    def run_streams(self, size: int) -> float:
        self.ran.append(size)
        return size * self.in_streams[size]

    def sizes_with(self, count: int) -> list[int]:
        """The sizes that it takes on all cores if it may have so many streams."""
        return self.sizes_after(worthwhile(STEPS, self.run), count)

    def sizes_after(self, alone: dict[int, float], count: int) -> list[int]:
        """The same, with what was measured on all cores."""
        offer = Offer(count, lambda: cast(Runner, SimpleNamespace()))
        return list(stream_if_faster(cast(AnyLane, self), alone, offer, self.run, self.run_streams))


ONES = dict.fromkeys(range(1, 33), 1.0)


@pytest.mark.parametrize(("share", "faster"), [(0.5, True), (1.0, True), (1.01, False), (2.0, False)])
def test_a_lane_has_streams_only_where_they_are_not_slower(share: float, faster: bool) -> None:
    lane = Timed(ONES, dict.fromkeys(ONES, share))
    assert lane.sizes_with(2) == ([1] if faster else [*STEPS])
    assert lane.streams == (Streams(2, (1, 2, 4)) if faster else None)


def test_what_ran_beside_batches_on_all_cores_alone_decides_nothing() -> None:
    lane = Timed(dict.fromkeys(ONES, 2.0), dict.fromkeys(ONES, 1.5))
    alone, lane.alone = worthwhile(STEPS, lane.run), ONES
    assert lane.sizes_after(alone, 2) == [*STEPS]
    assert lane.streams is None


def test_streams_take_no_more_images_at_once_than_pay() -> None:
    lane = Timed(ONES, {1: 0.80, 2: 0.82, 4: 0.84})
    lane.sizes_with(2)
    assert lane.streams == Streams(2, (1, 2))


@pytest.mark.parametrize(
    ("count", "sizes", "of_streams"),
    [(5, [1, 2, 3, 4], (1, 2, 4)), (16, [1, 2, 3, 4, 6, 8, 12], (1, 2)), (40, [*STEPS], (1,))],
)
def test_fewer_images_than_streams_keep_their_batches_on_all_cores(
    count: int, sizes: list[int], of_streams: tuple[int, ...]
) -> None:
    lane = Timed(ONES, dict.fromkeys(ONES, 0.5))
    assert lane.sizes_with(count) == sizes
    assert lane.streams == Streams(count, of_streams)
    assert set(lane.ran) == set(of_streams)


def test_what_large_batches_took_is_given_back_before_a_lane_serves(
    copied: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[OnnxRunner] = []
    monkeypatch.setattr(OnnxRunner, "release", lambda runner: released.append(runner))
    monkeypatch.setattr("serving.warming.GAIN", math.inf)
    with running(copied, runtime="onnxruntime-cpu", precision="fp32", max_batch=0, threads=2):
        lanes = [record for record in said.records if "takes batches of" in record.getMessage()]
        assert lanes
        # Each has a runner for batches on all cores, and one for those in streams.
        assert len(set(released)) == 2 * len(lanes)


@pytest.mark.parametrize(("gain", "ending"), [(math.inf, "; from 2 images on 2 streams of 1"), (0.0, "")])
def test_a_service_answers_right_whether_batches_run_in_streams_or_not(
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
        running(
            copied, runtime="onnxruntime-cpu", precision="fp32", max_batch=0, max_wait_ms=50, threads=2, folded="cracks"
        ) as client,
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
    assert all(ending in line and ("streams" in line) == bool(ending) for line in lines)
