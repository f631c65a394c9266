import threading
import time
from collections.abc import Sequence
from concurrent.futures import wait
from functools import partial

import numpy as np
import pytest

from mosa_deploy.bundles.preprocess import Array, Preprocess
from serving.batch_sizes import STEPS, fit, sizes_up_to
from serving.batching import Batcher
from serving.errors import RequestError
from serving.items import Item, Streams

PREPROCESS = Preprocess(size=(1, 1))


class Echo:
    """A cheap lane: says of each item its pixel, its slot's value and the batch's size; fails on pixel 13."""

    kind = "echo"

    def __init__(self, sizes: tuple[int, ...] = STEPS, streams: Streams | None = None) -> None:
        self.sizes, self.padding, self.slots = sizes, 0.25, np.zeros(1000, dtype=np.int64)
        self.streams = streams
        self.ran: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def device_lost(self) -> bool:
        return False

    def run(self, items: Sequence[Item], size: int, stream: bool = False) -> Array:
        self.gate.wait()
        self.ran.append((len(items), size))
        pixels = [int(item.pixels[0, 0, 0]) for item in items]
        if 13 in pixels:
            raise ValueError("thirteen" if len(items) == 1 else "one of many")
        slots = np.array([item.slot for item in items])
        return np.stack([pixels, self.slots[slots]], axis=1).astype(np.float32)


def item(lane: Echo, pixel: int, slot: int = 0, deadline: float = float("inf")) -> Item:
    return Item(lane, np.full((1, 1, 3), pixel, dtype=np.uint8), PREPROCESS, slot, deadline)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (1, (1, 1)),
        (5, (5, 6)),
        (7, (7, 8)),
        (9, (9, 12)),
        (13, (13, 16)),
        (17, (16, 16)),
        (20, (20, 24)),
        (90, (32, 32)),
    ],
)
def test_a_batch_is_padded_by_a_quarter_at_most(waiting: int, expected: tuple[int, int]) -> None:
    assert fit(waiting, sizes_up_to(32), 0.25) == expected


@pytest.mark.parametrize(
    ("waiting", "expected"), [(1, (1, 1)), (5, (4, 4)), (7, (6, 6)), (15, (12, 12)), (16, (16, 16)), (90, (32, 32))]
)
def test_nothing_is_padded_where_padding_takes_as_long_as_images(waiting: int, expected: tuple[int, int]) -> None:
    assert fit(waiting, sizes_up_to(32), 0) == expected


@pytest.mark.parametrize("padding", [0, 0.25])
@pytest.mark.parametrize(
    ("waiting", "expected"),
    [(1, (1, 1)), (2, (1, 1)), (4, (4, 8)), (8, (8, 8)), (9, (8, 8)), (16, (8, 8)), (20, (20, 32)), (40, (32, 32))],
)
def test_a_few_sizes_are_padded_to_where_a_second_batch_would_compute_as_much(
    waiting: int, expected: tuple[int, int], padding: float
) -> None:
    assert fit(waiting, (1, 8, 32), padding) == expected


def test_one_batch_is_better_than_two_that_compute_as_much() -> None:
    assert fit(3, (2, 4), 0) == (3, 4)


def test_fewer_items_than_the_smallest_size_are_padded_to_it() -> None:
    assert fit(3, (8, 32), 0) == (3, 8)


@pytest.mark.parametrize("largest", [1, 5, 8, 32, 40])
def test_every_number_of_waiting_items_makes_a_batch_of_a_warm_size(largest: int) -> None:
    sizes = sizes_up_to(largest)
    assert sizes[-1] == largest
    assert set(sizes) <= {*STEPS, largest}
    for waiting in range(1, 3 * largest):
        count, size = fit(waiting, sizes, 0.25)
        assert 1 <= count <= size
        assert size in sizes
        assert count >= 0.75 * size


def test_items_that_wait_together_run_together() -> None:
    lane, batcher = Echo(), Batcher(max_batch=8, max_wait=0.2)
    items = [item(lane, i) for i in range(8)]
    for each in items:
        batcher.submit([each])
    rows = [each.future.result(5) for each in items]
    assert [row[0] for row in rows] == list(range(8))
    assert lane.ran == [(8, 8)]
    assert {each.batch.images for each in items if each.batch} == {8}
    batcher.close()


def test_a_batch_waits_only_for_requests_that_are_on_their_way() -> None:
    lane, coming = Echo(), 1
    batcher = Batcher(max_wait=60, coming=lambda: coming)
    alone = item(lane, 1)
    batcher.submit([alone])
    assert alone.future.result(timeout=10)[0] == 1
    coming = 3
    first, second = item(lane, 2), item(lane, 3)
    batcher.submit([first])
    with pytest.raises(TimeoutError):
        first.future.result(timeout=0.2)
    coming = 2
    batcher.submit([second])
    wait([first.future, second.future], timeout=10)
    assert lane.ran == [(1, 1), (2, 2)]
    batcher.close()


def test_a_lane_of_few_sizes_gets_those_alone_and_no_more_items_than_the_most() -> None:
    lane, batcher = Echo((8, 32)), Batcher(max_batch=20, max_wait=0.2)
    items = [item(lane, i) for i in range(14, 44)]
    batcher.submit(items)
    assert [each.future.result(5)[0] for each in items] == list(range(14, 44))
    assert lane.ran == [(20, 32), (8, 8), (2, 8)]
    bad = [item(lane, i) for i in (1, 13)]
    batcher.submit(bad)
    assert bad[0].future.result(5)[0] == 1
    assert lane.ran[3:] == [(2, 8), (1, 8), (1, 8)]
    batcher.close()


def test_one_bad_item_fails_alone() -> None:
    lane, batcher = Echo(), Batcher(max_batch=8, max_wait=0.1)
    items = [item(lane, i) for i in (1, 13, 2, 3)]
    batcher.submit(items)
    wait([each.future for each in items], 5)
    assert [each.future.exception() is None for each in items] == [True, False, True, True]
    with pytest.raises(RequestError, match=r"^inference failed: thirteen$"):
        items[1].future.result()
    assert batcher.broken is None
    batcher.close()


class OnGpu(Echo):
    """A lane whose every run fails, on a device that is lost or is not."""

    def __init__(self, fault: str, lost: bool) -> None:
        super().__init__()
        self.fault, self.lost = fault, lost

    def device_lost(self) -> bool:
        return self.lost

    def run(self, items: Sequence[Item], size: int, stream: bool = False) -> Array:
        raise RuntimeError(self.fault)


def test_a_lost_gpu_is_remembered_whatever_the_fault_says() -> None:
    lane, batcher = OnGpu("the engine did not run", lost=True), Batcher()
    one = item(lane, 1)
    batcher.submit([one])
    assert isinstance(one.future.exception(5), RequestError)
    assert batcher.broken == "the engine did not run"
    batcher.close()


def test_a_gpu_that_still_works_is_not_lost_whatever_the_fault_says() -> None:
    lane, batcher = OnGpu("CUDA error 2: out of memory", lost=False), Batcher()
    one = item(lane, 1)
    batcher.submit([one])
    assert isinstance(one.future.exception(5), RequestError)
    assert batcher.broken is None
    batcher.close()


def test_more_than_the_bound_is_refused_as_a_whole() -> None:
    lane = Echo()
    lane.gate.clear()
    batcher = Batcher(max_batch=1, max_wait=0, bound=3)
    first = item(lane, 1)
    batcher.submit([first])
    while batcher.waiting:
        time.sleep(0.001)
    waiting = [item(lane, 2), item(lane, 3)]
    batcher.submit(waiting)
    late = [item(lane, 4), item(lane, 5)]
    with pytest.raises(RequestError, match="2 images are waiting; ask again in a second") as caught:
        batcher.submit(late)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    lane.gate.set()
    assert [int(each.future.result(5)[0]) for each in (first, *waiting)] == [1, 2, 3]
    assert not any(each.future.done() for each in late)
    batcher.close()


def test_what_is_late_or_given_up_is_not_computed() -> None:
    lane = Echo()
    lane.gate.clear()
    batcher = Batcher(max_batch=1, max_wait=0, deadline=0.01)
    first, late, gone = item(lane, 1), item(lane, 2, deadline=time.monotonic() + 0.01), item(lane, 3)
    batcher.submit([first, late, gone])
    assert gone.future.cancel()
    time.sleep(0.05)
    lane.gate.set()
    first.future.result(5)
    with pytest.raises(RequestError, match="no answer within") as caught:
        late.future.result(5)
    assert caught.value.status == 504
    batcher.close()
    assert lane.ran == [(1, 1)]


def test_a_call_runs_between_batches_and_before_what_is_queued_after_it() -> None:
    lane, batcher = Echo(), Batcher(max_batch=4, max_wait=0)
    for value in range(1, 200):
        batcher.call(partial(lane.slots.__setitem__, 7, value)).result(5)
        one = item(lane, 1, slot=7)
        batcher.submit([one])
        assert one.future.result(5)[1] == value
    batcher.close()


def test_a_call_comes_before_what_waits() -> None:
    lane = Echo()
    lane.gate.clear()
    batcher = Batcher(max_batch=1, max_wait=0)
    batcher.submit([item(lane, 1)])
    while batcher.waiting:
        time.sleep(0.001)
    batcher.submit([item(lane, 2)])
    ran = batcher.call(lambda: len(lane.ran))
    lane.gate.set()
    assert ran.result(5) == 1
    batcher.close()


def test_a_call_that_fails_tells_its_caller_and_stops_nothing() -> None:
    lane, batcher = Echo(), Batcher()
    with pytest.raises(ZeroDivisionError):
        batcher.call(lambda: 1 / 0).result(5)
    one = item(lane, 1)
    batcher.submit([one])
    assert one.future.result(5)[0] == 1
    batcher.close()


def test_closing_finishes_what_is_queued_and_takes_nothing_more() -> None:
    lane = Echo()
    lane.gate.clear()
    batcher = Batcher(max_batch=2, max_wait=60)
    items = [item(lane, i) for i in range(5)]
    batcher.submit(items)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    lane.gate.set()
    closer.join(5)
    assert [int(each.future.result(0)[0]) for each in items] == list(range(5))
    with pytest.raises(RequestError, match="stopping"):
        batcher.submit([item(lane, 1)])


def test_lanes_take_turns_by_age() -> None:
    first, second = Echo(), Echo()
    first.gate.clear()
    batcher = Batcher(max_batch=1, max_wait=0)
    order: list[Echo] = []
    batcher.observe = lambda items: order.append(items[0].lane)  # type: ignore[arg-type]  # toy lanes
    items = [item(first, 0), item(second, 1), item(first, 2), item(second, 3)]
    for each in items:
        batcher.submit([each])
    first.gate.set()
    wait([each.future for each in items], 5)
    batcher.close()
    assert order == [first, second, first, second]
