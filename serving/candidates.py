"""Candidates: the files by which a task's graph can run, and what runs them; the first choice first, fp32 last.

    engines                       where TensorRT and an NVIDIA GPU are here
    <graph>.int8.onnx and others  which the export proved, in the order that `serving.ranking` gives
    <graph>.onnx                  fp32, which every graph has; the folded lane can also fold it here

A candidate that cannot be used is given up for all tasks. One that misses a task's canary is given up for that task.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.store_layout import (
    BACKBONES,
    ENGINES,
    FOLDED,
    PARITY,
    TASKS,
    UNFOLDED,
    backbone_folder,
    format_file,
    task_folder,
)
from mosa_deploy.bundles.task_graph import ProvedFile, proved_files
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import BundleError, ConfigError, MosaError, ParityError, StoreError
from mosa_deploy.graphs.adapter_weights import choose_layout
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, Arithmetic, RunnerName
from mosa_deploy.runtimes.tensorrt_record import engines_of, read_records
from serving.errors import RequestError
from serving.runtime import Mode, Runtimes
from serving.storage import Files
from serving.store import TaskStore, Version

log = logging.getLogger("mosa_deploy.serving")

FOR_TENSORRT = "int8-tensorrt"
"""The format of int8 files that engines are built from. No CPU is given one: it would run them slower than fp32."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a task's graph."""

    runner: RunnerName
    precision: Arithmetic
    """What it computes in."""
    file: Path | None = None
    """None if the graph is folded here."""
    digest: str | None = None
    """The recorded sha256 of the file, if there is one."""

    @property
    def engine(self) -> bool:
        """Whether it is an engine of TensorRT."""
        return self.runner == "tensorrt"

    @property
    def name(self) -> str:
        """The file's name, with the runner if it is not the default one."""
        file = self.file.name if self.file else "the graph that is folded here"
        return file if self.runner in ("tensorrt", DEFAULT_RUNNER) else f"{file} by {self.runner}"


@dataclass(frozen=True)
class Choices:
    """The candidates of a version, in the order in which they are tried."""

    graph: str
    """The name of the fp32 graph."""
    candidates: tuple[Candidate, ...]
    proved: Mapping[str, ProvedFile] = field(default_factory=dict)
    """What the version's export says of its files."""
    missing: str | None = None
    """Why none of them is in the precision that MOSA_PRECISION names."""

    @property
    def last(self) -> Candidate:
        """The one in fp32, which the others are compared with."""
        return self.candidates[-1]


class CandidateList:
    """Lists candidates, and remembers which of them cannot be used."""

    def __init__(self, store: TaskStore, runtimes: Runtimes) -> None:
        self.store, self.runtimes = store, runtimes
        self.ranked: dict[str, tuple[Mode, ...]] = {}
        """Folder of a backbone -> the modes that are worth trying before the last, as measured."""
        self.given_up: dict[Candidate, str] = {}
        """Candidate -> why it is of no use to any task."""
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def modes(self, backbone: str) -> tuple[Mode, ...]:
        """The modes to try for a backbone, before the last."""
        return self.ranked.get(backbone, self.runtimes.unmeasured)

    def of(self, version: Version, lane: LaneName, modes: Sequence[Mode] | None = None) -> Choices:
        """The candidates of a version in a lane; `modes` are those of its backbone unless they are given.

        Raises:
            StoreError: the backbone's folder is missing or damaged.
            BundleError: no graph of this lane can serve it.
        """
        modes = self.modes(version.record.backbone.folder) if modes is None else modes
        return self._shared(version, modes) if lane == "shared" else self._own(version, lane, modes)

    def _shared(self, version: Version, modes: Sequence[Mode]) -> Choices:
        folder = self.store.files.local(backbone_folder(version.record.backbone))
        files = read_index(folder).files
        graph = choose_layout(version.record, files).file
        found = self._of_graph(folder, graph, files, modes)
        last = self._last(folder / graph, files.get(graph))
        return Choices(graph, (*found, last), self._proved(version), self._missing(graph, files, found))

    def _own(self, version: Version, lane: LaneName, modes: Sequence[Mode]) -> Choices:
        task, graph = version.record.task, FOLDED if lane == "folded" else UNFOLDED
        place, exported = task_folder(task), version.key == self.store.exported(task)
        names = self.store.files.names(place) if exported else []
        proved = self._proved(version)
        files = {name: proved[name].sha256 if name in proved else None for name in names if name.endswith(".onnx")}
        found: tuple[Candidate, ...] = ()
        last: tuple[Candidate, ...] = ()
        if files or ENGINES in names:
            folder = self.store.files.local(place)
            found = self._of_graph(folder, graph, files, modes)
            last = (self._last(folder / graph, files[graph]),) if graph in files else ()
        if lane == "folded":
            last = (*last, self._last(None, None))
        if not last:
            raise BundleError(self._no_graph(version, exported))
        return Choices(graph, (*found, *last), proved, self._missing(graph, files, found))

    def _last(self, file: Path | None, digest: str | None) -> Candidate:
        return Candidate(self.runtimes.last.runner, self.runtimes.last.precision, file, digest)

    def _of_graph(
        self, folder: Path, graph: str, files: Mapping[str, str | None], modes: Sequence[Mode]
    ) -> tuple[Candidate, ...]:
        """The candidates of a graph before the last. `files` are the ONNX files in its folder, with their digests."""
        found = (
            Candidate(mode.runner, mode.precision, folder / mode.file(graph), files[mode.file(graph)])
            for mode in modes
            if mode != self.runtimes.last and mode.file(graph) in files
        )
        return (*self._engines(folder, graph), *found)

    def _engines(self, folder: Path, graph: str) -> list[Candidate]:
        if self.runtimes.capability is None:
            return []
        try:
            records = read_records(folder)
            files = engines_of(folder, graph, self.runtimes.capability)
        except StoreError as fault:
            self.say(f"no engine in {folder} is used: {fault}")
            return []
        found = [Candidate("tensorrt", records[file.name].precision, file, records[file.name].sha256) for file in files]
        return [each for each in found if self.runtimes.precision in ("auto", each.precision)]

    def _proved(self, version: Version) -> Mapping[str, ProvedFile]:
        """What the export of a version says of its files; nothing of an uploaded one."""
        task = version.record.task
        if version.key != self.store.exported(task):
            return {}
        try:
            return proved_files(self.store.files.read(f"{task_folder(task)}/{PARITY}"), version.digest)
        except FileNotFoundError:
            return {}

    def _missing(self, graph: str, files: Mapping[str, object], found: Sequence[Candidate]) -> str | None:
        """Why a graph is not served in the precision that is named; None if it can be, or none is named."""
        wanted = self.runtimes.precision
        if wanted in ("auto", "fp32") or any(each.precision == wanted for each in found):
            return None
        if wanted == "bf16":
            return "a graph that is folded here runs in fp32"
        for_tensorrt = format_file(Path(graph), FOR_TENSORRT).name
        if wanted == "int8" and for_tensorrt in files:
            return f"{for_tensorrt} is for TensorRT alone: {write_command(wanted)} writes one for CPUs"
        return f"there is no {format_file(Path(graph), wanted).name} of this version: {write_command(wanted)} writes it"

    def _no_graph(self, version: Version, exported: bool) -> str:
        record = version.record
        style = record.adapter.style if record.adapter else record.method
        found = f"{UNFOLDED} is missing" if exported else "an upload has none"
        return (
            f"'{record.task}' has {style} adapters, which only an exported graph can serve, and {found}:"
            f" run `mosa export --bundle RUN --out {self.store}`, and restart the service"
        )

    def fail(self, candidate: Candidate, task: str, fault: MosaError, serves: bool, instead: str) -> None:
        """Log once why a task is not served by a candidate, and give it up for all unless the task is to blame.

        `serves` says whether the candidate serves other tasks. An ONNX file ran where it was exported, so what a task
        misses there is the task's own; an engine may never have run.
        """
        own = serves or isinstance(fault, ConfigError | RequestError)
        own = own or (isinstance(fault, ParityError) and not candidate.engine)
        with self._lock:
            known = candidate in self.given_up
            if not own:
                self.given_up.setdefault(candidate, str(fault))
        if own or not known:
            self.say(f"{task} without {candidate.name}, by {instead}: {fault}", task)

    def say(self, line: str, task: str | None = None) -> None:
        """Log a warning, unless it was logged before."""
        with self._lock:
            if line in self._said:
                return
            self._said.add(line)
        log.warning("%s", line, extra={"task": task})


def write_command(precision: str) -> str:
    """The command that writes files of a precision."""
    return f"`mosa export --precision fp32,{precision} --bundle RUN --out STORE`"


def require_files(files: Files, runtimes: Runtimes) -> None:
    """Find out, before anything is loaded, whether any task can be served in the precision that is named.

    Raises:
        StoreError: the store has no file of it at all.
    """
    wanted = runtimes.precision
    if wanted in ("auto", "fp32", "bf16"):
        return
    endings = {f".{mode.format}.onnx" for mode in runtimes.contenders}
    endings |= {f".{wanted}.{runtimes.capability}.engine"} if runtimes.capability else set()
    places = [f"{top}/{name}" for top in (BACKBONES, TASKS) for name in files.names(top)]
    names = [name for place in places for name in files.names(place)]
    if any(name.endswith(ending) for name in names for ending in endings):
        return
    other = next((name for name in names if wanted == "int8" and f".{FOR_TENSORRT}." in name), None)
    reason = f"{other} is for TensorRT alone" if other else f"{files} holds no such file"
    way_out = f"{write_command(wanted)} writes one; or leave MOSA_PRECISION out"
    raise StoreError(f"MOSA_PRECISION={wanted}: {reason}: {way_out}")
