"""Which adapters `--method auto` tries, and which of them it stops early: Optuna's TPE and successive halving.

Every method begins at what suits the backbone (`training.trials.centre`). Further trials are drawn at random, and after
`RANDOM` of them by TPE (J. Bergstra et al., NeurIPS 2011): a method, its learning rate and scale within a factor of
`REACH`, for MoSA the number of experts and how they are drawn. After a third of the epochs, and after two thirds, a
trial goes on only if it is in the better half of those that came as far (asynchronous successive halving, L. Li et al.,
arXiv 1810.05934). The study lives in memory: since everything is drawn from the run's seed, a search that goes on
repeats the draws and reads the trials that are finished.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from mosa_deploy.bundles.adapter_config import LOW_RANK_METHODS, SPLIT_METHODS
from mosa_deploy.utils.seeds import derive
from training.choice import Candidate, Options, Outcome, title
from training.loop import Row
from training.recipe import Recipe

ADAPTERS: tuple[Candidate, ...] = (
    ("adapter", {}),
    ("lora", {}),
    ("mosa", {}),
    ("mosa", {"style": "repadapter"}),
    ("ssf", {}),
)
"""What is tried, in this order. RepAdapter itself is left out: split into experts it was 6 points better."""

RANDOM = 10
REACH = 3.0
HALVES = 2
"""One of so many trials goes on."""

EXPERTS = (2, 4)
ACTIVATE = ("balanced", "per-pass")

STATES: dict[Outcome, TrialState] = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class Proposal:
    """A setting to try, and how its trial goes."""

    trial: optuna.Trial
    method: str
    options: Options
    epochs: int
    """The epochs of a trial that is not stopped."""
    measure: str
    """The metric on validation that decides."""
    reported: int = 0
    """The epochs whose accuracy was told."""
    best: float = 0.0
    """The best value of the metric so far."""

    def watch(self, history: Sequence[Row]) -> None:
        """Tell the metric of the epochs that are new in the history.

        Raises:
            optuna.TrialPruned: the trial is to be stopped.
        """
        for row in history[self.reported :]:
            self.reported += 1
            self.best = max(self.best, row[self.measure])
            self.trial.report(self.best, self.reported)
            if self.reported < self.epochs and self.trial.should_prune():
                raise optuna.TrialPruned


class Search:
    """Proposes settings of adapters, and learns how they did.

    Each candidate begins at its recipe in `centres`; `epochs` are those of a trial that is not stopped, and `measure`
    is the metric on validation that decides.
    """

    def __init__(self, centres: Sequence[tuple[Candidate, Recipe]], epochs: int, measure: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.centres = {title(candidate): (candidate, centre) for candidate, centre in centres}
        self.epochs, self.measure = epochs, measure
        self.study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=derive(seed, "search") % 2**32),
            pruner=optuna.pruners.SuccessiveHalvingPruner(math.ceil(epochs / 3), HALVES),
        )
        for name, (_, centre) in self.centres.items():
            start = {"method": name, f"{name} lr": centre.lr, f"{name} scale": centre.scale}
            self.study.enqueue_trial(start | {f"{name} experts": EXPERTS[0], f"{name} activate": ACTIVATE[0]})

    def propose(self) -> Proposal:
        """The next setting: first the centre of every candidate, then what the sampler draws."""
        trial = self.study.ask()
        name = trial.suggest_categorical("method", tuple(self.centres))
        (method, own), centre = self.centres[name]
        options = Options(own)
        scaled = ("lr",) if method in (*LOW_RANK_METHODS, "ssf") else ("lr", "scale")
        for option in scaled:
            middle = getattr(centre, option)
            drawn = trial.suggest_float(f"{name} {option}", middle / REACH, middle * REACH, log=True)
            options[option] = float(f"{drawn:.3g}")
        if method in SPLIT_METHODS:
            options["experts"] = trial.suggest_categorical(f"{name} experts", EXPERTS)
            options["activate"] = trial.suggest_categorical(f"{name} activate", ACTIVATE)
        return Proposal(trial, method, options, self.epochs, self.measure)

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        """Tell how a trial ended."""
        state = STATES[outcome]
        self.study.tell(proposal.trial, proposal.best if state is TrialState.COMPLETE else None, state)
