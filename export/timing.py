"""Time several variants in turn, so that their ratios can be trusted.

A session may be faster only because of its place in memory or the order of opening, and more rounds do not average
this out. Neighbouring rounds share the machine's load, so they are not independent. Therefore all sessions are opened
several times, each time in a new random order. All variants run in turn in every round, and each opening gives one
ratio: the median over its rounds. `mosa_deploy.utils.intervals.ratio_interval` computes Student's interval from these.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.runtimes.names import Arithmetic

WARM_UP = 2
"""Untimed runs of each variant before the first timed one."""

MIN_ROUNDS = 10
"""Least number of rounds per batch size, over all openings."""

Answer = Callable[[Array], object]
"""Runs one variant on images (B, 3, H, W)."""

Times = list[dict[str, NDArray[np.float64]]]
"""One entry per opening: variant -> milliseconds in each round."""


@dataclass(frozen=True)
class Row:
    """One variant at one batch size. Ratios are to the plain graph with the same runner in the same precision."""

    runner: str
    precision: Arithmetic
    """What the runner computes in."""
    variant: str
    bottleneck: int
    """r; 0 if the variant has no adapter."""
    batch: int
    sessions: int
    rounds: int
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    flop_ratio: float
    """Multiply-adds of the variant over those of the plain graph: the expected ratio of a compute-bound batch."""
    nodes: int
    optimised_nodes: int
    megabytes: float
    """Size of the graph's file and its banks."""


def time_sessions(
    opens: Mapping[str, Callable[[], Answer]], batches: Sequence[Array], seconds: float, sessions: int, title: str = ""
) -> list[Times]:
    """Time every variant; returns one entry per batch.

    `opens` maps a variant to the function that opens it. The rounds of each batch take `seconds`, or longer if that is
    too short for `MIN_ROUNDS`. The time to open sessions is not included.
    """
    rng = np.random.default_rng(0)
    times: list[Times] = [[] for _ in batches]
    with tqdm(desc=title, total=sessions * len(batches), leave=False, disable=None) as bar:
        for _ in range(sessions):
            names = rng.permutation(list(opens)).tolist()
            answers = {name: opens[name]() for name in names}
            for images, found in zip(batches, times, strict=True):
                found.append(time_rounds(answers, images, seconds / sessions, math.ceil(MIN_ROUNDS / sessions), rng))
                bar.update()
            del answers
    return times


def time_rounds(
    answers: Mapping[str, Answer], images: Array, seconds: float, least: int, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each variant in each round, in random order. Takes `seconds`, and at least `least` rounds."""
    for answer in answers.values():
        for _ in range(WARM_UP):
            answer(images)
    times: dict[str, list[float]] = {name: [] for name in answers}
    names, rounds, end = list(answers), 0, time.perf_counter() + seconds
    while time.perf_counter() < end or rounds < least:
        for i in rng.permutation(len(names)):
            start = time.perf_counter()
            answers[names[i]](images)
            times[names[i]].append(1000 * (time.perf_counter() - start))
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}
