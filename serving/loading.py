"""Loads a version of a task into a lane, by the first of its candidates that is proved there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.gate import LabelledImage
from mosa_deploy.bundles.store_layout import backbone_folder
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import MosaError
from mosa_deploy.graphs.adapter_weights import adapter_weights, digest_of
from serving.agreement import Agreement
from serving.candidates import Candidate, CandidateList, Choices
from serving.lanes import SharedLane
from serving.loaded_task import LoadedTask, prove
from serving.opening import Lanes
from serving.store import TaskStore, Version

Images = Sequence[LabelledImage]


@dataclass(frozen=True)
class LoadRequest:
    """A version that is to be loaded into a lane."""

    version: Version
    bundle: Bundle
    lane: LaneName
    choices: Choices
    validation: Callable[[], Images]
    """Reads the validation images that travel with it."""
    compare: bool = True
    """Whether to wait until its images have been compared; else a candidate that needs this is postponed."""


class Loader:
    """Places versions into lanes, and proves them there."""

    def __init__(self, store: TaskStore, lanes: Lanes, candidates: CandidateList, agreement: Agreement) -> None:
        self.store, self.lanes, self.candidates, self.agreement = store, lanes, candidates, agreement
        self.batcher = lanes.batcher

    def load(self, version: Version, bundle: Bundle, lane: LaneName, brought: Images | None = None) -> LoadedTask:
        """Load a version by the first candidate on which it is proved.

        `brought` are the validation images of a version that is not in the store yet. Nobody waits until these are
        compared: the version is loaded by what needs no comparison, and `postponed`.

        Raises:
            MosaError: what it misses on the last candidate, if it is proved on none.
        """
        choices = self.candidates.of(version, lane)
        read = partial(self.store.validation, version) if brought is None else lambda: brought
        wanted = LoadRequest(version, bundle, lane, choices, read, compare=not brought)
        reasons = [choices.missing] if choices.missing else []
        faults: dict[Candidate, MosaError] = {}
        postponed = False
        for candidate in choices.candidates[:-1]:
            if reason := self.candidates.given_up.get(candidate):
                reasons.append(f"{candidate.name}: {reason}")
                continue
            try:
                if self._must_wait(candidate, wanted):
                    postponed = True
                    reasons.append(f"{candidate.name}: it is being compared with fp32 on the validation images")
                    continue
                loaded = self._load_by(candidate, wanted)
                break
            except MosaError as fault:
                faults[candidate] = fault
                reasons.append(f"{candidate.name}: {fault}")
        else:
            loaded = self._load_by(choices.last, wanted)
        # Only now it is known that the candidates before are to blame, and not the task.
        for candidate, missed in faults.items():
            serves = self.lanes.serves(candidate)
            self.candidates.fail(candidate, version.record.task, missed, serves, str(loaded.lane.plan))
        loaded.fallback, loaded.postponed = "; ".join(reasons) or None, postponed
        return loaded

    def free(self, loaded: LoadedTask) -> None:
        """Take a version out of its lane."""
        lane = loaded.lane
        if isinstance(lane, SharedLane):
            self.batcher.call(partial(lane.clear, loaded.slot))

    def _must_wait(self, candidate: Candidate, wanted: LoadRequest) -> bool:
        """Whether only images can tell what a candidate costs a version, and its sender shall not wait for that."""
        if wanted.compare or candidate.precision != "int8":
            return False
        return self.agreement.evidence(candidate, wanted.version, wanted.choices) is None

    def _load_by(self, candidate: Candidate, wanted: LoadRequest) -> LoadedTask:
        loaded = self._place(candidate, wanted)
        try:
            prove(loaded, wanted.bundle, self.batcher)
            if candidate.precision == "int8":
                in_fp32 = partial(self._in_fp32, wanted)
                self.agreement.require(candidate, loaded, wanted.choices, wanted.validation, in_fp32)
        except BaseException:
            self.free(loaded)
            raise
        if isinstance(loaded.lane, SharedLane):
            loaded.lane.proved = True
        return loaded

    @contextmanager
    def _in_fp32(self, wanted: LoadRequest) -> Iterator[LoadedTask]:
        """The version in fp32, for as long as another candidate is compared with it."""
        loaded = self._load_by(wanted.choices.last, wanted)
        try:
            yield loaded
        finally:
            self.free(loaded)

    def _place(self, candidate: Candidate, wanted: LoadRequest) -> LoadedTask:
        version, bundle = wanted.version, wanted.bundle
        if wanted.lane != "shared":
            backbone = backbone_folder(version.record.backbone)
            folder = self.store.files.local(backbone) if candidate.file is None else None
            return LoadedTask(version, self.lanes.own(candidate, wanted.lane, bundle, folder), 0, None)
        weights = adapter_weights(bundle)
        shared = self.lanes.shared(candidate, version.record, weights)
        digest = digest_of(weights)
        slot = self.batcher.call(lambda: shared.write(weights, digest)).result()
        columns = shared.bank.layout.columns(version.record.features, slot)
        return LoadedTask(version, shared, slot, bundle.head, columns, bundle.statistics)
