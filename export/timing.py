"""Rounds and intervals: how variants are timed so that their ratios can be believed.

A session may keep an advantage from its place in memory and its turn of opening, which no number of rounds averages
out, and neighbouring rounds share the machine's moods. So every session is opened anew several times, in an order that
is drawn anew, and each opening gives one ratio: the median over its rounds, in which all variants run in turn. The
interval is Student's over the openings.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mosa_deploy.bundles.preprocess import Array

WARM_UP = 2
MIN_ROUNDS = 10

Answer = Callable[[Array], object]
"""Images (B, 3, H, W) to an answer, by one variant."""

Times = list[dict[str, NDArray[np.float64]]]
"""Of each opening: the milliseconds of each variant in each round."""


@dataclass(frozen=True)
class Row:
    """One variant at one batch size; ratios are to the plain graph by the same runner."""

    runner: str
    variant: str
    bottleneck: int
    """r; 0 where there is no adapter."""
    batch: int
    sessions: int
    rounds: int
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    flop_ratio: float
    """What the matrix products predict."""
    nodes: int
    optimised_nodes: int
    megabytes: float
    """Of the graph's file, and of its banks."""


def time_sessions(
    opens: Mapping[str, Callable[[], Answer]], batches: Sequence[Array], seconds: float, sessions: int, title: str = ""
) -> list[Times]:
    """The times of every variant for each batch, `seconds` a batch without the openings, at least 10 rounds."""
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
    """Milliseconds of each variant in each round, until the time is up and there are `least` rounds."""
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
