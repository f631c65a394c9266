"""The ranking: which files and runners answer fastest on this machine, which `auto` measures at the start.

One task stands for all those of its backbone: the one whose graph has the most candidates. These take turns with small
batches, for about a second each, before the service answers anybody. The times are kept in the store for this machine.
"""

import logging
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import MosaError
from mosa_deploy.runtimes.names import Arithmetic, RunnerName
from serving.candidates import Candidate, CandidateList
from serving.items import Item
from serving.kept import recall, remember
from serving.lanes import AnyLane
from serving.machine import Machine, Times, Timings
from serving.opening import Lanes
from serving.runtime import Mode
from serving.store import Version

log = logging.getLogger("mosa_deploy.serving")

SECONDS = 1.0
"""How long each candidate is timed, about."""
ROUNDS = 3
"""The fewest times that each one runs."""
BATCH = 4

LOOKED_AT = 8
"""How many tasks of a backbone are looked at for the one with the most candidates."""

GAIN = 0.95
"""The largest share of the last candidate's time that another may take: noise must not choose what is slower."""

Served = tuple[Version, LaneName]


@dataclass(frozen=True)
class Contest:
    """The candidates of one task, which stand for those of its backbone."""

    graph: str
    version: Version
    lane: LaneName
    candidates: Mapping[Mode, Candidate]

    def times(self, kept: Times | None, lanes: Lanes) -> Times:
        """What is kept, if these very files are among it; else what is measured now."""
        files = {str(mode): candidate.digest for mode, candidate in self.candidates.items()}
        if kept and files.items() <= kept.files.items():
            return kept
        opened: dict[Mode, AnyLane] = {}
        for mode, candidate in self.candidates.items():
            # What cannot be opened is said when it is to serve a task.
            with suppress(MosaError):
                opened[mode] = lanes.trial(candidate, self.lane, self.version)
        found = {str(mode): took for mode, took in measured(opened, self.version).items()}
        return Times(graph=self.graph, files=files, milliseconds=found)


class Ranking:
    """Orders the modes of each backbone by their times."""

    def __init__(self, candidates: CandidateList, lanes: Lanes) -> None:
        self.candidates, self.lanes = candidates, lanes
        self.runtimes, self.files = candidates.runtimes, candidates.store.files
        self.said: dict[str, str] = {}
        """Folder of a backbone -> what was chosen, with the times."""

    def measure(self, served: Iterable[Served]) -> None:
        """Rank the modes of each backbone, where the settings and the store leave a choice."""
        if len(self.runtimes.contenders) < 2:
            return
        by_backbone: dict[str, list[Served]] = {}
        for version, lane in served:
            by_backbone.setdefault(version.record.backbone.folder, []).append((version, lane))
        contests = {backbone: contest for backbone, own in by_backbone.items() if (contest := self._contest(own))}
        if not contests:
            return
        machine = Machine.here(self.lanes.threads)
        kept = self._kept(machine)
        times = {backbone: contest.times(kept.get(backbone), self.lanes) for backbone, contest in contests.items()}
        for backbone, found in times.items():
            self._choose(backbone, found)
        if any(found is not kept.get(backbone) for backbone, found in times.items()):
            remember(self.files, machine.file, Timings(machine=machine, backbones={**kept, **times}))

    def _contest(self, served: Sequence[Served]) -> Contest | None:
        """The contest of a backbone; None if there are no two candidates."""
        modes: dict[tuple[RunnerName, Arithmetic], Mode] = {
            (mode.runner, mode.precision): mode for mode in self.runtimes.contenders
        }
        found: list[Contest] = []
        for version, lane in served[:LOOKED_AT]:
            # A task that cannot be served is said when it is loaded.
            with suppress(MosaError):
                choices = self.candidates.of(version, lane, self.runtimes.contenders)
                timed = [each for each in choices.candidates if each.file and (each.runner, each.precision) in modes]
                of_modes = {modes[each.runner, each.precision]: each for each in timed}
                found.append(Contest(choices.graph, version, lane, of_modes))
        best = max(found, key=lambda contest: len(contest.candidates), default=None)
        return best if best and len(best.candidates) > 1 else None

    def _kept(self, machine: Machine) -> Mapping[str, Times]:
        """The times that are kept for this machine, by backbone."""
        kept = recall(self.files, machine.file, Timings)
        if kept and kept.machine != machine:
            log.warning("%s/%s is of another machine: it is measured again", self.files, machine.file)
            return {}
        return kept.backbones if kept else {}

    def _choose(self, backbone: str, times: Times) -> None:
        """Order the modes of a backbone by their times, and say so."""
        runtimes = self.runtimes
        found = {mode: times.milliseconds[str(mode)] for mode in runtimes.contenders if str(mode) in times.milliseconds}
        ranked = order(found, runtimes.last)
        self.candidates.ranked[backbone] = ranked
        first = (*ranked, runtimes.last)[0]
        took = [f"{mode} {found[mode]:.3g}" for mode in sorted(found, key=found.__getitem__)]
        self.said[backbone] = f"{first}; milliseconds per image: {', '.join(took)}"
        log.info("the fastest for %s is %s", backbone, self.said[backbone])


def order(found: Mapping[Mode, float], last: Mode) -> tuple[Mode, ...]:
    """The modes that are worth trying before the last, by their times, the fastest first."""
    bound = GAIN * found.get(last, math.inf)
    return tuple(sorted((mode for mode in found if found[mode] < bound), key=found.__getitem__))


def measured(opened: Mapping[Mode, AnyLane], version: Version) -> dict[Mode, float]:
    """The milliseconds per image of each lane; one that does not run is left out."""
    blank: NDArray[np.uint8] = np.zeros((*version.record.preprocess.size, 3), dtype=np.uint8)
    running: dict[Mode, list[float]] = {}
    for mode, lane in opened.items():
        # Runtimes' exceptions share no base class; what does not run is said when it is to serve a task.
        with suppress(Exception):
            run_once(lane, blank, version)
            running[mode] = []
    end, rounds = time.monotonic() + SECONDS * len(running), 0
    while running and (rounds < ROUNDS or time.monotonic() < end):
        for mode, took in running.items():
            took.append(run_once(opened[mode], blank, version))
        rounds += 1
    return {mode: statistics.median(took) for mode, took in running.items()}


def run_once(lane: AnyLane, pixels: NDArray[np.uint8], version: Version) -> float:
    """Run one batch; returns the milliseconds per image."""
    size = min(BATCH, lane.sizes[-1])
    items = [Item(lane, pixels, version.record.preprocess, 0, deadline=math.inf) for _ in range(size)]
    start = time.perf_counter()
    lane.run(items, size)
    return 1000 * (time.perf_counter() - start) / size
