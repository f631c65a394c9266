"""Which of the trials of `--method auto` is kept, and why, in words for its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.markdown import table

Options = dict[str, Any]
"""Fields of `TuneConfig`."""

Candidate = tuple[str, Options]
"""A method, and the options that make it another one."""

Outcome = Literal["finished", "stopped", "failed"]
"""`stopped` is by successive halving, `failed` by an error."""

PRICE = "a task with an adapter needs a backbone pass of its own for every image, and tasks with probes share one"


@dataclass(frozen=True)
class Tried:
    """What came of one setting."""

    method: str
    options: Options
    folder: Path
    probe: bool
    outcome: Outcome
    epochs: int
    """0 for probes, which are fitted."""
    accuracy: float
    """The best on validation."""
    nll: float
    """Negative log likelihood on validation; infinite unless it is finished."""
    seconds: float
    fault: str = ""
    """Why it failed."""

    @property
    def setting(self) -> str:
        """The options that were tried in words: `lr 0.005, scale 0.1`."""
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.options.items()
        )

    @property
    def name(self) -> str:
        """Method and setting in words."""
        return f"{self.method} ({self.setting})" if self.options else self.method


@dataclass(frozen=True)
class Choice:
    """The best probe, the best adapter, and the one of them that is kept."""

    probe: Tried
    adapter: Tried | None
    """None if none was finished."""
    worth: float
    """The points of validation accuracy by which an adapter must be better."""

    @property
    def winner(self) -> Tried:
        """The adapter if it is worth its pass, else the probe."""
        return self.adapter if self.adapter is not None and self.points >= self.worth - 1e-9 else self.probe

    @property
    def points(self) -> float:
        """Points of validation accuracy by which the adapter is better than the probe."""
        return -math.inf if self.adapter is None else 100 * (self.adapter.accuracy - self.probe.accuracy)


def title(candidate: Candidate) -> str:
    """A candidate in words: `linear blocks`."""
    method, options = candidate
    return " ".join((method, *options.values()))


def choose(tried: Sequence[Tried], worth: float) -> Choice:
    """Find the best probe and the best adapter on validation, the likelihood deciding between equals.

    Raises:
        TrainingError: no probe was finished.
    """
    finished = [each for each in tried if each.outcome == "finished"]
    probes, adapters = ([each for each in finished if each.probe is probe] for probe in (True, False))
    if not probes:
        raise TrainingError("no probe could be fitted: " + "; ".join(each.fault for each in tried if each.probe))
    return Choice(max(probes, key=_rank), max(adapters, key=_rank, default=None), worth)


def _rank(tried: Tried) -> tuple[float, float]:
    return tried.accuracy, -tried.nll


def section(tried: Sequence[Tried], choice: Choice, measure: str, epochs: int, images: int) -> str:
    """The part of the report that says what was tried, and why the winner won.

    `measure` is the metric that decided, `epochs` are those of a trial that is not stopped, and `images` is the number
    of validation images.
    """
    rows = [
        (
            each.method,
            each.setting,
            each.epochs or "-",
            f"{each.accuracy:.4f}" if each.outcome != "failed" else "-",
            f"{each.seconds:.0f}",
            _outcome(each, choice, epochs),
        )
        for each in tried
    ]
    head = ("method", "setting", "epochs", measure.replace("_", " "), "seconds", "")
    return f"""## How the method was chosen

{why(choice)}

{doubt(choice, images)}

{table(head, rows, align="llrrrl")}

The probes are one trial, and every other line is one. Each adapter method began at what suits the backbone; further
settings were drawn. After a third of the epochs and after two thirds, a trial went on if it was in the better half of
those that had come as far, which is hard on a method that learns late.
"""


def why(choice: Choice) -> str:
    """Why the winner won, in two sentences."""
    probe, adapter = choice.probe, choice.adapter
    found = f"The best probe, {probe.name}, has {probe.accuracy:.4f} on validation"
    if adapter is None:
        return f"{found}, and no adapter was finished: the probe was chosen."
    worth = f"An adapter must be better by {choice.worth:.1f} points (`--worth`), because {PRICE}"
    kind = "adapter" if choice.winner is adapter else "probe"
    return (
        f"{found}; the best adapter, {adapter.name}, has {adapter.accuracy:.4f}, a"
        f" difference of {choice.points:+.1f}. {worth}: **the {kind} was chosen.**"
    )


def doubt(choice: Choice, images: int) -> str:
    """How far validation can be trusted."""
    share = (choice.winner.accuracy * images + 1) / (images + 2)  # One more of each kind: 1.0 is no certainty.
    error = 100 * math.sqrt(share * (1 - share) / images)
    return (
        f"Validation has {images} images: one of them is {100 / images:.1f} points, and the standard error of the"
        f" winner's accuracy is {error:.1f}. The best of many trials looks better on validation than it is. The test"
        " set took no part."
    )


def _outcome(tried: Tried, choice: Choice, epochs: int) -> str:
    if tried is choice.winner:
        return "**chosen**"
    if tried.outcome == "stopped":
        return f"stopped after {tried.epochs} of {epochs} epochs"
    return f"failed: {tried.fault}" if tried.outcome == "failed" else ""
