"""What a plan's runs say: `python -m benchmarks.evidence_report develop`.

A plan of development is answered by a table of settings: each method's is the one with the highest mean of validation
accuracy over the tasks of the plan's own backbone. A plan that reads the test sets is answered by means over seeds and
by paired differences. Their intervals are Student's, over the seeds, of the mean over the tasks. A plan may name the
method, `reference`, that all others are compared with, and another plan of the same tasks and seeds, `beside`, whose
runs stand beside its own. A plan of which runs are missing decides nothing, and its report says so.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.evidence import Config, Job, Row, load_plan, read_plan, read_rows
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.intervals import mean_interval
from mosa_deploy.utils.markdown import table

PROBES = ("linear", "attentive")
"""The methods that share one pass of the frozen backbone."""

WORTH = 0.01
"""The gain in validation accuracy from which `auto` takes an adapter instead of a probe."""

Choice = Callable[[str, int], Row]
"""The run that stands for a method on a task with a seed."""


def settings_table(jobs: Sequence[Job], rows: Sequence[Row]) -> str:
    """Validation accuracy by method, setting and task; the best setting of each method is marked.

    Tasks with a backbone of their own are shown, but they do not choose beside others.
    """
    found = {row.key: row.validation_accuracy for row in rows}
    tasks = list(dict.fromkeys(job.task for job in jobs))
    choosing = [
        task for task in tasks if next(job for job in jobs if job.task == task).config.backbone_weights
    ] or tasks
    lines: dict[str, list[tuple[float, list[str]]]] = {}
    for method, setting in dict.fromkeys((job.method, job.setting) for job in jobs):
        values = {task: _mean(found, jobs, task, method, setting) for task in tasks}
        mean = float(np.mean([values[task] for task in choosing]))
        lines.setdefault(method, []).append((mean, [method, setting, *map(_percent, values.values()), _percent(mean)]))
    cells = []
    for settings in lines.values():
        best = max((mean for mean, _ in settings if not np.isnan(mean)), default=None)
        cells += [[*line[:-1], f"**{line[-1]}**" if mean == best else line[-1]] for mean, line in settings]
    return table(("method", "setting", *tasks, "mean"), cells)


def _mean(found: dict[tuple[str, str, str, int], float], jobs: Sequence[Job], *key: str) -> float:
    values = [found.get(job.key, np.nan) for job in jobs if job.key[:3] == key]
    return float(np.mean(values)) if values else np.nan


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def by_validation(rows: Sequence[Row], methods: Sequence[str]) -> Choice:
    """The run of these methods that is best on validation, for each task and seed."""

    def choose(task: str, seed: int) -> Row:
        here = [row for row in rows if (row.task, row.seed) == (task, seed) and row.method in methods]
        return max(here, key=lambda row: (row.validation_accuracy, -row.validation_nll))

    return choose


def as_auto(probe: Choice, adapter: Choice) -> Choice:
    """The run that `--method auto` takes: the best adapter if it is worth its pass, else the best probe."""

    def choose(task: str, seed: int) -> Row:
        cheap, dear = probe(task, seed), adapter(task, seed)
        return dear if dear.validation_accuracy >= cheap.validation_accuracy + WORTH else cheap

    return choose


def by_setting(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the setting in the method's name where a method has several."""
    settings = {(row.method, row.setting) for row in rows}
    count = Counter(method for method, _ in settings)
    return [replace(row, method=f"{row.method} {row.setting}") if count[row.method] > 1 else row for row in rows]


def choices(rows: Sequence[Row]) -> dict[str, Choice]:
    """Every method, the best probe and the best adapter by validation, and what `auto` takes."""
    methods = list(dict.fromkeys(row.method for row in rows))
    probes = [method for method in methods if method.startswith(PROBES)]
    probe = by_validation(rows, probes)
    adapter = by_validation(rows, [method for method in methods if method not in probes])
    found = {method: by_validation(rows, [method]) for method in methods}
    if not probes or len(probes) == len(methods):
        return found
    return found | {"best probe": probe, "best adapter": adapter, "auto": as_auto(probe, adapter)}


def accuracies_table(rows: Sequence[Row]) -> str:
    """Test accuracy by method and task: the mean over seeds."""
    tasks, seeds = list(dict.fromkeys(row.task for row in rows)), sorted({row.seed for row in rows})
    cells = []
    for name, choice in choices(rows).items():
        values = [[accuracy(choice(task, seed)) for seed in seeds] for task in tasks]
        cells.append([name, *(_percent(float(np.mean(each))) for each in values), _percent(float(np.mean(values)))])
    return table(("method", *tasks, "mean"), cells)


def accuracy(row: Row) -> float:
    """The test accuracy of a run.

    Raises:
        ConfigError: its plan does not read the test sets.
    """
    if row.test_accuracy is None:
        raise ConfigError(f"{row.task}, {row.method}, seed {row.seed}: no test accuracy")
    return row.test_accuracy


def differences_table(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> str:
    """Points of test accuracy of the first above the second, paired by task and seed, with 95 % intervals."""
    tasks, seeds = list(dict.fromkeys(row.task for row in rows)), sorted({row.seed for row in rows})
    known, cells = choices(rows), []
    for first, second in pairs:
        values = np.array(
            [[accuracy(known[first](t, s)) - accuracy(known[second](t, s)) for s in seeds] for t in tasks]
        )
        cells.append([f"{first} - {second}", *map(_points, values), _points(values.mean(0))])
    return table(("difference", *tasks, "mean of the tasks"), cells)


def compared(methods: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """What is compared with what: every method with the reference of its plan, or MoSA and LoRA with the adapter."""
    if reference is not None:
        return [(name, reference) for name in methods if name != reference]
    return [
        *((name, "adapter") for name in methods if name.startswith("mosa") or name == "lora"),
        *(("best adapter", "best probe"), ("auto", "best adapter"), ("auto", "best probe")),
    ]


def _points(values: Sequence[float]) -> str:
    return f"{mean_interval([100 * value for value in values]):+z.2f}"


def report(config: Config) -> str:
    """The report of a plan, as Markdown.

    Raises:
        ConfigError: there is no such plan.
    """
    jobs = read_plan(config)
    planned = {job.key for job in jobs}
    rows = [row for row in read_rows(config.results / f"{config.plan}.csv") if row.key in planned]
    missing = len(jobs) - len(rows)
    state = f"{missing} of {len(jobs)} runs are missing: this decides nothing." if missing else f"{len(jobs)} runs."
    parts = [f"# Evidence: {config.plan}", f"`python -m benchmarks.evidence_report {config.plan}`", state]
    if not jobs[0].test:
        parts += ["Validation accuracy in percent.", settings_table(jobs, rows)]
    elif not missing:
        plan = load_plan(config)
        reference = plan.get("reference")
        if reference is not None:
            parts += ["Validation accuracy in percent.", settings_table(jobs, rows)]
        if "beside" in plan:
            rows = [*read_rows(config.results / f"{plan['beside']}.csv"), *rows]
        rows = by_setting(rows)
        known = choices(rows)
        pairs = compared(list(known), reference)
        parts += ["Test accuracy in percent, mean over the seeds.", accuracies_table(rows)]
        if {name for pair in pairs for name in pair} <= known.keys():
            parts += ["Points, paired by seed, with 95 % intervals.", differences_table(rows, pairs)]
    return "\n\n".join(parts) + "\n"


@command
def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    text = report(config)
    path: Path = config.results / f"{config.plan}.md"
    write_text(path, text)
    print(text)


if __name__ == "__main__":
    main()
