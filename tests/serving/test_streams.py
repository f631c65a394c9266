"""Batches that run at the same time: which do, how they share what waits, and that no change happens meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from mosa_deploy.bundles.preprocess import Array, Preprocess
from serving.batching import Batcher
from serving.items import Item, Streams

PREPROCESS = Preprocess(size=(1, 1))


class Watched:
    """A lane that notes each batch, `(images, whether it ran in a stream)`, and how many ran at once.

    A batch with an image of those that are `held` does not end. With `together` a batch in a stream waits until as many
    of them run at once.
    """

    kind = "watched"
    sizes, padding = (1, 2, 4), 0.0

    def __init__(self, streams: Streams | None, together: int = 1) -> None:
        self.streams, self.together = streams, threading.Barrier(together, timeout=10)
        self.ran: list[tuple[int, bool]] = []
        self.lock, self.going_on, self.most = threading.Lock(), 0, 0
        self.held: set[int] = set()
        self.seconds = 0.0
        """How long a batch takes at least."""

    def device_lost(self) -> bool:
        return False

    def run(self, items: Sequence[Item], size: int, stream: bool = False) -> Array:
        pixels = [int(item.pixels[0, 0, 0]) for item in items]
        with self.lock:
            self.going_on += 1
            self.most = max(self.most, self.going_on)
            self.ran.append((len(items), stream))
        if stream:
            self.together.wait()
        time.sleep(self.seconds)
        until(lambda: not self.held.intersection(pixels))
        with self.lock:
            self.going_on -= 1
        if 13 in pixels:
            raise ValueError("thirteen")
        return np.array(pixels, dtype=np.float32)[:, None]


def item(lane: Watched, pixel: int) -> Item:
    return Item(lane, np.full((1, 1, 3), pixel, dtype=np.uint8), PREPROCESS, 0, float("inf"))


def answers(items: Sequence[Item]) -> list[float]:
    return [float(each.future.result(10)[0]) for each in items]


@contextmanager
def batching(streams: int = 2, max_wait: float = 0.0) -> Iterator[Batcher]:
    """A batcher that is closed in the end."""
    batcher = Batcher(max_batch=8, max_wait=max_wait, streams=streams)
    try:
        yield batcher
    finally:
        batcher.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1]), (4, [2, 2]), (3, [1, 2])])
def test_streams_run_at_the_same_time_and_share_what_waits(count: int, sizes: list[int]) -> None:
    lane = Watched(Streams(2, (1, 2, 4)), together=2)
    with batching() as batcher:
        items = [item(lane, i) for i in range(count)]
        batcher.submit(items)
        assert answers(items) == list(range(count))
    assert sorted(lane.ran) == [(size, True) for size in sizes]


def test_fewer_images_than_streams_run_on_all_cores() -> None:
    lane = Watched(Streams(3, (1, 2, 4)))
    with batching(streams=3) as batcher:
        items = [item(lane, i) for i in range(2)]
        batcher.submit(items)
        assert answers(items) == [0, 1]
    assert lane.ran == [(2, False)]


def test_a_stream_that_is_done_takes_the_next_image_while_others_go_on() -> None:
    lane = Watched(Streams(2, (1,)))
    lane.held = {0}
    with batching() as batcher:
        items = [item(lane, i) for i in range(5)]
        batcher.submit(items)
        assert answers(items[1:]) == [1, 2, 3, 4]
        assert not items[0].future.done()
        late = item(lane, 5)
        batcher.submit([late])
        assert answers([late]) == [5]
        lane.held = set()
        assert answers(items[:1]) == [0]
    assert lane.most == 2


def test_a_batch_on_all_cores_has_them_to_itself() -> None:
    lane = Watched(Streams(2, (1,)))
    lane.held = {0}
    with batching() as batcher:
        first, beside = item(lane, 0), [item(lane, i) for i in (1, 2)]
        batcher.submit([first])
        until(lambda: lane.going_on == 1)
        batcher.submit(beside)
        time.sleep(0.05)
        assert lane.ran == [(1, False)]
        lane.held = {1, 2}
        until(lambda: lane.going_on == 2)
        lane.held = set()
        assert answers([first, *beside]) == [0, 1, 2]
    assert lane.ran[1:] == [(1, True), (1, True)]


def test_a_lane_without_streams_waits_for_those_of_another_and_comes_next() -> None:
    streamed, alone = Watched(Streams(2, (1,))), Watched(None)
    streamed.held, alone.held = {0, 1}, {7}
    with batching() as batcher:
        first = [item(streamed, i) for i in range(2)]
        batcher.submit(first)
        until(lambda: streamed.going_on == 2)
        one, later = item(alone, 7), [item(streamed, i) for i in range(2, 6)]
        batcher.submit([one])
        batcher.submit(later)
        time.sleep(0.05)
        assert not alone.ran
        streamed.held = set()
        until(lambda: alone.going_on == 1)
        assert len(streamed.ran) == 2
        alone.held = set()
        assert answers([*first, one, *later]) == [0, 1, 7, 2, 3, 4, 5]
    assert alone.ran == [(1, False)]


def test_a_call_waits_for_every_stream_and_no_stream_begins_before_it_is_done() -> None:
    lane = Watched(Streams(2, (1,)))
    lane.held = {0, 1}

    def call() -> tuple[int, int]:
        found = lane.going_on, len(lane.ran)
        time.sleep(0.05)
        assert found == (lane.going_on, len(lane.ran))
        return found

    with batching() as batcher:
        items = [item(lane, i) for i in range(2)]
        batcher.submit(items)
        until(lambda: lane.going_on == 2)
        called, more = batcher.call(call), [item(lane, i) for i in range(2, 8)]
        batcher.submit(more)
        lane.held = {1}
        assert answers(items[:1]) == [0]
        assert not called.done()
        lane.held = set()
        assert called.result(10) == (0, 2)
        assert answers([*items, *more]) == list(range(8))


def test_changes_and_images_of_many_threads_never_meet() -> None:
    lane, faults = Watched(Streams(3, (1, 2))), list[object]()
    lane.seconds = 0.001

    def change() -> None:
        if lane.going_on:
            faults.append("a batch runs during a change")
        time.sleep(0.0002)

    with batching(streams=3, max_wait=0.0005) as batcher:

        def asks(seed: int) -> None:
            own = np.random.default_rng(seed)
            for _ in range(60):
                items = [item(lane, int(pixel)) for pixel in own.integers(14, 200, own.integers(1, 7))]
                batcher.submit(items)
                found, wanted = answers(items), [float(each.pixels[0, 0, 0]) for each in items]
                if found != wanted:
                    faults.append((found, wanted))

        threads = [threading.Thread(target=asks, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            batcher.call(change).result(10)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not faults
    assert lane.most > 1


def test_one_bad_image_of_a_stream_fails_alone() -> None:
    lane = Watched(Streams(2, (1, 2)))
    with batching() as batcher:
        items = [item(lane, pixel) for pixel in (1, 13, 2, 3)]
        batcher.submit(items)
        assert answers([items[0], *items[2:]]) == [1, 2, 3]
        assert str(items[1].future.exception(10)) == "inference failed: thirteen"
    assert {stream for _, stream in lane.ran} == {True}


def test_closing_finishes_what_is_queued_in_streams() -> None:
    lane = Watched(Streams(2, (1,)))
    lane.held = {0}
    batcher = Batcher(max_batch=2, max_wait=60, streams=2)
    items = [item(lane, i) for i in range(7)]
    batcher.submit(items)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    assert answers(items[1:]) == [1, 2, 3, 4, 5, 6]
    assert closer.is_alive()
    lane.held = set()
    closer.join(10)
    assert not closer.is_alive()
    assert answers(items[:1]) == [0]
