from collections.abc import Callable

import numpy as np
import pytest

from export.timing import Answer, time_sessions
from mosa_deploy.bundles.preprocess import Array

BATCHES = [np.zeros((size, 3, 4, 4), dtype=np.float32) for size in (1, 2)]


def noted(events: list[tuple[str, int]], name: str) -> Callable[[], Answer]:
    """Opens a variant that notes when it is opened (0) and for how many images it is run."""

    def opens() -> Answer:
        events.append((name, 0))

        def answer(images: Array) -> None:
            events.append((name, len(images)))

        return answer

    return opens


def test_every_session_opens_each_variant_once_and_every_round_runs_each_once_in_a_changing_order() -> None:
    events: list[tuple[str, int]] = []
    times = time_sessions({name: noted(events, name) for name in "abc"}, BATCHES, seconds=0, sessions=5)
    assert [len(found) for found in times] == [5, 5]
    assert all({name: len(ms) for name, ms in opened.items()} == dict.fromkeys("abc", 2) for opened in times[0])
    openings = "".join(name for name, size in events if size == 0)
    orders = [openings[i : i + 3] for i in range(0, 15, 3)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 1
    for size in (1, 2):
        runs = "".join(name for name, images in events if images == size)
        rounds = [runs[k + i : k + i + 3] for k in range(0, 60, 12) for i in (6, 9)]
        assert {"".join(sorted(names)) for names in rounds} == {"abc"}
        assert len(set(rounds)) > 2
        assert len(runs) == 60


def test_the_seconds_are_those_of_the_rounds_of_a_batch_and_every_variant_has_as_many() -> None:
    clock = [0.0]

    def slow(cost: float) -> Callable[[], Answer]:
        def answer(images: Array) -> None:
            clock[0] += cost * len(images)

        return lambda: answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.timing.time.perf_counter", lambda: clock[0])
        times = time_sessions({"a": slow(0.125), "b": slow(0.375)}, BATCHES, seconds=20, sessions=5)
    for size, found in zip((1, 2), times, strict=True):
        assert [{name: len(ms) for name, ms in opened.items()} for opened in found] == [
            dict.fromkeys("ab", 8 // size)
        ] * 5
        np.testing.assert_allclose(found[0]["b"] / found[0]["a"], 3)
        np.testing.assert_allclose(found[0]["a"], 125 * size)
