"""Sets that worker processes decode while they are used."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mosa_deploy.bundles.decode import PILLOW_PIXELS
from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.processes import without_interrupts
from tests.support.images import PREPROCESS, write_jpegs
from tests.support.waiting import wait_for
from tests.support.walker import ROOT
from training.cache import FILES, CachedSet, reserve
from training.data import Batch, Images, cuts
from training.inspection import Inspection
from training.reading import decode_all
from training.stream import StreamedImages
from training.tasks.base import Example
from training.workers import Workers

HOW = Inspection(PREPROCESS, PILLOW_PIXELS, compared=True)
ORDER = torch.tensor([*range(39, -1, -1), *range(0, 40, 3)])


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = write_jpegs(tmp_path_factory.mktemp("images"), {"oak": 20, "ash": 20}, size=20)
    return [Example(path.name, path.read_bytes, i % 2) for i, path in enumerate(sorted(folder.rglob("*.jpg")))]


@pytest.fixture(scope="module")
def decoded(examples: list[Example]) -> Images:
    return decode_all(examples, PREPROCESS, "train")


def streamed(root: Path, examples: list[Example], workers: Workers) -> StreamedImages:
    cached = CachedSet.of(root, examples, HOW)
    reserve(root, [cached], most=1)
    return StreamedImages(cached, examples, HOW, workers, "train")


def same(found: Iterator[Batch], expected: Iterator[Batch]) -> bool:
    return all(
        torch.equal(ours.pixels, theirs.pixels) and torch.equal(ours.labels, theirs.labels)
        for ours, theirs in zip(found, expected, strict=True)
    )


def test_batches_are_those_of_images_in_memory_whether_the_cache_is_cold_or_warm(
    examples: list[Example], decoded: Images, workers: Workers, tmp_path: Path
) -> None:
    for _ in range(2):
        assert same(streamed(tmp_path, examples, workers).batches(cuts(ORDER, 7)), decoded.batches(cuts(ORDER, 7)))


def test_one_worker_decodes_what_two_do(examples: list[Example], decoded: Images, tmp_path: Path) -> None:
    with Workers(1) as single:
        assert same(streamed(tmp_path, examples, single).batches(cuts(ORDER, 7)), decoded.batches(cuts(ORDER, 7)))


def test_images_beyond_the_first_batches_are_decoded_ahead(
    examples: list[Example], workers: Workers, tmp_path: Path
) -> None:
    images = streamed(tmp_path, examples, workers)
    batches = images.batches(cuts(torch.arange(40), 4))
    next(batches)
    wait_for(lambda: bool(images.records["state"].all()))


def test_two_runs_may_fill_one_cache(
    examples: list[Example], decoded: Images, workers: Workers, tmp_path: Path
) -> None:
    first, second = (streamed(tmp_path, examples, workers) for _ in range(2))
    orders = ORDER, ORDER.flip(0)
    found = [images.batches(cuts(order, 7)) for images, order in zip((first, second), orders, strict=True)]
    for order, both in zip(orders, zip(*zip(*found, strict=True), strict=True), strict=True):
        assert same(iter(both), decoded.batches(cuts(order, 7)))


@pytest.mark.parametrize("name", FILES)
def test_a_cache_that_is_cut_short_is_filled_again(
    examples: list[Example], decoded: Images, workers: Workers, tmp_path: Path, name: str
) -> None:
    cached = streamed(tmp_path, examples, workers).cached
    list(streamed(tmp_path, examples, workers).batches(cuts(ORDER, 7)))
    os.truncate(cached.folder / name, 1000)
    assert same(streamed(tmp_path, examples, workers).batches(cuts(ORDER, 7)), decoded.batches(cuts(ORDER, 7)))
    assert (cached.folder / name).stat().st_size == cached.files()[cached.folder / name]


def test_damaged_pixels_are_decoded_again(
    examples: list[Example], decoded: Images, workers: Workers, tmp_path: Path
) -> None:
    images = streamed(tmp_path, examples, workers)
    assert len(images.settled()) == 40
    with (images.cached.folder / "pixels").open("r+b") as handle:
        handle.seek(5 * images.cached.bytes_each)
        handle.write(b"damaged")
    np.testing.assert_array_equal(streamed(tmp_path, examples, workers).settled().take([4, 5]), decoded.take([4, 5]))


@pytest.fixture
def spoiled(examples: list[Example], tmp_path: Path) -> list[Example]:
    """The same images, of which the fourth to the seventh cannot be read."""
    (tmp_path / "bad").write_bytes(b"no image")
    bad = Example("bad", (tmp_path / "bad").read_bytes, 0)
    return [*examples[:3], *[bad] * 4, *examples[7:]]


def test_unreadable_images_are_left_out_of_their_batches(
    spoiled: list[Example], decoded: Images, workers: Workers, tmp_path: Path
) -> None:
    images = streamed(tmp_path, spoiled, workers)
    for _ in range(2):
        batches = [*images.batches(cuts(torch.arange(40), 4))]
        assert [len(batch.labels) for batch in batches] == [3, 1, *[4] * 8]
        assert torch.equal(batches[1].pixels, decoded.take([7]))


def test_a_batch_without_any_readable_image_is_empty(spoiled: list[Example], workers: Workers, tmp_path: Path) -> None:
    batches = streamed(tmp_path, spoiled, workers).batches(cuts(torch.arange(40), 2))
    assert [len(batch.labels) for batch in batches] == [2, 1, 0, 1, *[2] * 16]


def test_after_all_are_decoded_the_set_holds_those_that_can_be_read(
    spoiled: list[Example], decoded: Images, workers: Workers, tmp_path: Path
) -> None:
    images = streamed(tmp_path, spoiled, workers).settled()
    kept = [0, 1, 2, *range(7, 40)]
    assert torch.equal(torch.cat([*images.split(16)]), decoded.take(kept))
    assert torch.equal(images.labels, decoded.labels[kept])
    assert images.examples == [decoded.examples[row] for row in kept]


def test_what_an_earlier_run_could_not_read_is_tried_again(
    spoiled: list[Example], examples: list[Example], workers: Workers, tmp_path: Path
) -> None:
    first = streamed(tmp_path, spoiled, workers)
    assert len(first.settled()) == 36
    again = StreamedImages(first.cached, examples, HOW, workers, "train")
    assert len(again.settled()) == 40


def test_a_worker_that_dies_is_one_line(examples: list[Example], tmp_path: Path) -> None:
    cached = CachedSet(tmp_path / "set", 40, (16, 16))
    cached.make()
    deadly = [*examples[:20], Example("deadly", partial(os._exit, 1), 0), *examples[21:]]
    with Workers(2) as doomed:
        images = StreamedImages(cached, deadly, HOW, doomed, "train")
        with pytest.raises(TrainingError, match=r"^a process that prepares images died, .*: give fewer --workers, and"):
            list(images.batches(cuts(torch.arange(40), 4)))


SLOW = """
import pathlib, signal, sys, time
from functools import partial
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import command
from training.cache import CachedSet
from training.inspection import Inspection
from training.tasks.base import Example
from training.workers import Workers, finish

# A job in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)

@command
def main():
    cached = CachedSet(pathlib.Path(sys.argv[1]), 9, (16, 16))
    cached.make()
    started = pathlib.Path(sys.argv[1], "started")
    slow = Example("slow", partial(time.sleep, 600), 0)
    jobs = [(0, slow), (1, Example("start", started.touch, 0)), (2, slow)]
    with Workers(2) as workers:
        for each in jobs:
            last = workers.decode(cached, Inspection(Preprocess(size=(16, 16)), 100, True), [each])
        finish(last)

main()
"""
"""Waits for workers that sleep: `started` says that they work."""


def hand_out(done: list[bool]) -> None:
    """Does something that Ctrl-C must not interrupt. Python answers it in the main thread, whichever it reached."""
    with without_interrupts():
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
        thread.start()
        thread.join()
        done.append(True)


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Ctrl-C is answered, as it is not in a job in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
def test_ctrl_c_waits_until_a_job_is_handed_out() -> None:
    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        hand_out(done)
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_interrupted_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            wait_for((tmp_path / "started").exists)
            if number == signal.SIGINT:  # A terminal sends it to all.
                os.killpg(run.pid, number)
            else:
                run.send_signal(number)
            errors = run.communicate(timeout=60)[1]
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    wait_for(lambda: not alive(run.pid))
    if number == signal.SIGINT:
        assert errors == "interrupted; what was finished is kept\n"
        assert run.returncode == 130


def alive(group: int) -> bool:
    """Whether a group of processes has any."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
