"""The runs that `--method auto` tries, each in a folder of its own; one that is finished is read and not made again."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import optuna

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import CHECKPOINT, RECORD
from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.files import write_text
from training import run
from training.choice import Options, Outcome, Tried
from training.config import TuneConfig
from training.dataset import Data, Read, read_dataset
from training.loop import Watch
from training.recipe import Recipe
from training.search import Proposal
from training.tasks.base import Splits
from training.workers import Workers

TRIALS = "trials"
"""The folder of the runs, in that of the whole."""

SECONDS = "seconds.json"
"""How long a run took, in all of its beginnings together."""

OF_ALL = ("backbone", "balance", "select", "recipe")
"""The settings of a recipe that probes share with adapters."""

OF_ADAPTERS = tuple(
    name for name in Recipe.__dataclass_fields__ if name in TuneConfig.__dataclass_fields__ and name not in OF_ALL
)
"""The options that decide how adapters are tuned."""


class Tune(Protocol):
    """Tunes a run: `training.tune.tune`."""

    def __call__(self, config: TuneConfig, read: Read = ..., watch: Watch | None = None) -> Path:
        """See `training.tune.tune`."""
        ...


@dataclass
class Attempts:
    """Makes the runs. The images are read once, for all of them."""

    config: TuneConfig
    out: Path
    tune: Tune
    measure: str
    """The metric on validation that decides."""
    workers: Workers
    """Decode the images if there are many."""
    tried: list[Tried] = field(default_factory=list)
    dataset: Data | None = None

    def probe(self, method: str, options: Options) -> Tried:
        """Fit a probe. What the command line says of epochs, rates and the like is for adapters."""
        unset: Options = dict.fromkeys(OF_ADAPTERS)
        config = replace(self.config.for_probes(), **unset | options, method=method)
        return self._attempt(config, options, None)

    def adapter(self, proposal: Proposal) -> Tried:
        """Tune an adapter."""
        config = self.config.for_method(proposal.method, **proposal.options)
        return self._attempt(config, proposal.options, proposal)

    def _attempt(self, config: TuneConfig, options: Options, proposal: Proposal | None) -> Tried:
        folder = self.out / TRIALS / f"{len(self.tried):02d}-{config.method}"
        outcome: Outcome = "finished"
        fault = ""
        try:
            if proposal is not None:
                proposal.watch(run.read_history(folder))
            if not (folder / RECORD).is_file():
                self._run(
                    replace(config, trials=None, worth=None, out=folder), None if proposal is None else proposal.watch
                )
        except optuna.TrialPruned:
            outcome = "stopped"
            (folder / CHECKPOINT).unlink(missing_ok=True)
        except TrainingError as error:
            outcome, fault = "failed", str(error)
        tried = Tried(
            method=config.method,
            options=options,
            folder=folder,
            probe=proposal is None,
            outcome=outcome,
            epochs=0 if proposal is None else len(run.read_history(folder)),
            accuracy=0.0 if proposal is None else proposal.best,
            nll=math.inf,
            seconds=read_seconds(folder),
            fault=fault,
        )
        if outcome == "finished":
            metrics = json.loads((folder / run.METRICS).read_text())
            tried = replace(tried, accuracy=metrics[self.measure], nll=metrics["validation_nll"])
        self.tried.append(tried)
        return tried

    def _run(self, config: TuneConfig, watch: Watch | None) -> None:
        assert config.out is not None
        folder, start = config.out, time.monotonic()
        before = read_seconds(folder)
        try:
            with self._output(folder):
                self.tune(replace(config, resume=(folder / run.CONFIG).exists()), self.read, watch)
        finally:
            if folder.is_dir():
                write_text(folder / SECONDS, json.dumps(before + time.monotonic() - start) + "\n")

    @contextlib.contextmanager
    def _output(self, folder: Path) -> Iterator[None]:
        """The first run says what it has to say of the task and its images; that of the others goes to a log."""
        if not self.tried:
            yield
            return
        with (
            folder.with_suffix(".log").open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            yield

    def read(self, splits: Splits, preprocess: Preprocess, config: TuneConfig, out: Path, workers: Workers) -> Data:
        """The images, read at the first call; the lists about them go into the folder of the whole, not `out`.

        The workers of the whole decode them, for those of a run end with it.
        """
        if self.dataset is None:
            self.dataset = read_dataset(splits, preprocess, config, self.out, self.workers)
        return self.dataset

    def forget(self) -> None:
        """Remove what was begun."""
        shutil.rmtree(self.out / TRIALS, ignore_errors=True)


def read_seconds(folder: Path) -> float:
    """How long a run has taken so far."""
    path = folder / SECONDS
    return float(json.loads(path.read_text())) if path.is_file() else 0.0
