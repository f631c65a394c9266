"""The stages of a task, the command line of each, and which of them are finished: the files that they leave say so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.record import RECORD, Record, read_record
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.errors import BundleError
from mosa_deploy.utils.command_line import arguments_of, changed, options_of
from mosa_deploy.utils.files import write_text
from training import run
from training.config import TuneConfig
from training.fleet.options import FleetConfig
from training.options import EvaluateConfig
from training.run_settings import differences
from training.tasks import run_name
from training.tune_options import ExecutionOptions, StreamOptions

TUNE, EVALUATE, EXPORT, DEPLOY = "tune", "evaluate", "export", "deploy"

FREE = {"out", "resume", "device", *options_of(ExecutionOptions), *options_of(StreamOptions)}
"""Options that do not change what comes of a run."""


class Notes(BaseModel):
    """What a fleet keeps about a task beside the files of its stages, in `notes/<task>.json`."""

    model_config = ConfigDict(frozen=True)

    options: dict[str, str] = {}
    """The options of its run, as text."""
    seconds: dict[str, float] = {}
    """Stage -> how long it took, in all of its beginnings that ended by themselves."""
    deployed: tuple[str, str] | None = None
    """Address and digest of what was deployed last."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the notes; without them only times are unknown, and a deployment is repeated."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return cls()


@dataclass(frozen=True)
class FleetTask:
    """A task of a fleet and the places of its files."""

    config: TuneConfig
    """What it is tuned with; `out` is the folder of its run."""
    fleet: FleetConfig
    tested: bool = True
    """Whether it has test images."""

    @property
    def name(self) -> str:
        """Its name in the store and in the service."""
        return self.config.name or run_name(self.config.task)

    @property
    def folder(self) -> Path:
        """The folder of its run."""
        return self.fleet.out / "runs" / self.name

    @property
    def log(self) -> Path:
        """What its stages print."""
        return self.fleet.out / "logs" / f"{self.name}.log"

    @property
    def notes(self) -> Path:
        """The file of its notes."""
        return self.fleet.out / "notes" / f"{self.name}.json"

    @property
    def exported(self) -> Path:
        """Its folder in the store."""
        return StoreLayout(self.fleet.store_folder).task(self.name)

    @cached_property
    def options(self) -> dict[str, str]:
        """The options that decide what comes of its run, as text."""
        return {name: str(value) for name, value in changed(self.config).items() if name not in FREE}

    @property
    def begun(self) -> bool:
        """Whether there is a run of it, finished or not."""
        return any((self.folder / name).exists() for name in (run.CONFIG, run.SEARCH, RECORD))

    @property
    def tuned(self) -> bool:
        """Whether its run is finished."""
        return (self.folder / RECORD).is_file()

    @property
    def evaluation(self) -> Path:
        """The figures on the test set."""
        return self.folder / run.EVALUATION / run.METRICS

    def tuned_record(self) -> Record | None:
        """The record of its run; None if it is not tuned."""
        return _record(self.folder)

    def exported_record(self) -> Record | None:
        """The record in the store, if it was exported from the run as it is; else None."""
        tuned, found = self.tuned_record(), _record(self.exported)
        if tuned is None or found is None:
            return None
        # An export merges the experts: the form and the digest are all that differs.
        return found if found.model_copy(update={"form": tuned.form, "sha256": tuned.sha256}) == tuned else None

    def waiting(self) -> list[str]:
        """The stages that are not finished, in their order."""
        record = self.exported_record()
        finished = {
            TUNE: self.tuned,
            EVALUATE: self.tuned and (self.evaluation.is_file() or not self.tested),
            EXPORT: record is not None,
            DEPLOY: record is not None and Notes.read(self.notes).deployed == (self.fleet.to, record.sha256),
        }
        return [stage for stage in self.stages() if not finished[stage]]

    def lines(self) -> list[list[str]]:
        """The command lines of the stages that are not finished."""
        return [self.line(stage) for stage in self.waiting()]

    def stages(self) -> list[str]:
        """All of its stages."""
        evaluated, deployed = [EVALUATE] if self.tested else [], [] if self.fleet.to is None else [DEPLOY]
        return [TUNE, *evaluated, EXPORT, *deployed]

    def line(self, stage: str) -> list[str]:
        """The command line of `mosa` that carries out a stage."""
        consent = ["--new-classes"] if self.fleet.new_classes else []
        if stage == TUNE:
            return [stage, *arguments_of(replace(self.config, out=self.folder, resume=self.begun))]
        if stage == EVALUATE:
            weights, reading = self.config.backbone_weights, self.config.reading
            given = EvaluateConfig(bundle=self.folder, backbone_weights=weights, reading=reading)
            return [stage, *arguments_of(replace(given, device=self.config.device))]
        if stage == EXPORT:
            weights = self.config.backbone_weights
            more = [] if weights is None else ["--backbone-weights", str(weights)]
            return [stage, "--bundle", str(self.folder), "--out", str(self.fleet.store_folder), *more, *consent]
        return [stage, str(self.exported), "--to", str(self.fleet.to), *consent]

    def other_options(self) -> str | None:
        """In what its run was begun otherwise than is asked for now; None if in nothing."""
        before = Notes.read(self.notes).options
        if not self.begun or not before:
            return None
        return "; ".join(differences(before, self.options)) or None

    def begin(self) -> None:
        """Note what its run is tuned with, before it is."""
        if not self.begun:
            self._write(Notes(options=self.options))

    def ended(self, stage: str, seconds: float, finished: bool) -> None:
        """Note that a stage ended."""
        notes = Notes.read(self.notes)
        update: dict[str, object] = {"seconds": notes.seconds | {stage: notes.seconds.get(stage, 0.0) + seconds}}
        record = self.exported_record() if finished and stage == DEPLOY else None
        if record is not None:
            update["deployed"] = (self.fleet.to, record.sha256)
        self._write(notes.model_copy(update=update))

    def _write(self, notes: Notes) -> None:
        write_text(self.notes, notes.model_dump_json(indent=2) + "\n")


def _record(folder: Path) -> Record | None:
    if not (folder / RECORD).is_file():
        return None
    try:
        return read_record(folder)
    except BundleError:
        return None


def stages_of(tasks: Sequence[FleetTask]) -> int:
    """The number of stages of all tasks."""
    return sum(len(task.stages()) for task in tasks)
