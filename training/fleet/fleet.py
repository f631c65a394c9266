"""Tune, evaluate, export and deploy the tasks of a file: `mosa fleet tasks.toml --out fleet`.

Reads from top to bottom: check all tasks, carry out the stages that are not finished, write what came of them. Every
stage is a command line of `mosa`, and its own files say whether it is finished. So a fleet that was stopped goes on
when the same command runs again, and what was killed loses at most the epoch that it was in.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import joblib
from filelock import FileLock, Timeout
from tqdm import tqdm

from mosa_deploy.errors import ConfigError
from training.fleet.crew import Work
from training.fleet.options import FleetConfig
from training.fleet.place import Place
from training.fleet.process import End
from training.fleet.report import PAGE, REPORT, tables, write_report
from training.fleet.rows import Failure, Row, put_beside, read_rows, write_rows
from training.fleet.stages import FleetTask, stages_of
from training.fleet.tasks import fleet_tasks
from training.fleet.words import failure, figure, summary

FAILED_EXIT = 1
"""The exit code if a task failed."""


def print_fleet(config: FleetConfig) -> None:
    """Carry out a fleet, print its table, and say which tasks failed.

    Raises:
        MosaError: the file, an option or a task cannot be used; found out before anything starts.
        SystemExit: with code 1 if a task failed.
    """
    if config.ray is not None:
        config = config.on_every_machine()
    earlier = [] if config.beside is None else read_rows(config.beside)
    tasks = fleet_tasks(config)
    with alone(config.out):
        failures = carry_out(config, tasks)
        rows = [Row.of(task, failures.get(task.name)) for task in tasks]
        beside = put_beside(rows, earlier) if earlier else []
        write_rows(config.out, rows)
        write_report(config.out, rows, beside)
    print(tables(rows, beside))
    if beside and config.to is None:
        print("Nothing was deployed: the same command with --to URL does so.")
    print(f"{summary(rows)}; written to {config.out / PAGE} and {config.out / REPORT}, with fleet.csv beside them")
    failed = [failure(row) for row in rows if row.fault]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if failed:
        raise SystemExit(FAILED_EXIT)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep others from working in the same folder. The system frees it when this process ends, however that is.

    Raises:
        ConfigError: another fleet is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"--out {out}: another mosa fleet is at work there; wait for it, or give another --out"
        ) from None


def carry_out(config: FleetConfig, tasks: Sequence[FleetTask]) -> dict[str, Failure]:
    """Carry out the stages of all tasks that are not done; returns the failures by task."""
    by_name = {task.name: task for task in tasks if task.waiting()}
    if not by_name:
        return {}
    done = stages_of(tasks) - sum(len(task.waiting()) for task in by_name.values())
    # Threads wait for the processes: one at a time writes notes and moves the bar.
    lock = threading.Lock()
    # A cluster takes as many at a time as it has cores for.
    jobs = config.jobs or (len(by_name) if config.ray else joblib.cpu_count())
    with (
        place(config, list(by_name.values())).crew(jobs) as crew,
        tqdm(total=stages_of(tasks), initial=done, desc="fleet", unit=" stages", disable=None) as bar,
    ):

        def told(work: Work, end: End) -> None:
            with lock:
                task = by_name[work.name]
                task.ended(end.line[0], end.seconds or 0.0, not end.fault)
                bar.update(not end.fault)
                bar.write(line_about(task, end))

        for task in by_name.values():
            task.begin()
        faults = crew.carry_out([Work(name, task.lines, task.log) for name, task in by_name.items()], told)
    return {name: Failure(fault.line[0], fault.text) for name, fault in faults.items()}


def place(config: FleetConfig, tasks: Sequence[FleetTask]) -> Place:
    """Where the tasks are carried out."""
    inputs = [path for task in tasks for path in task.config.inputs]
    return Place(config.ray, config.gpus, [config.out, config.store_folder], inputs)


def line_about(task: FleetTask, end: End) -> str:
    """A line about a stage that ended."""
    row, stage = Row.of(task, None), end.line[0]
    figures = {
        "tune": f"validation {figure(row.validation, row.measure)}",
        "evaluate": f"test {figure(row.test, row.measure)}",
        "export": f"bundle {row.bundle[:12]}",
        "deploy": f"to {task.fleet.to}",
    }
    said = end.fault if end.lost else f"failed, see {task.log}" if end.fault else figures[stage]
    return f"{task.name}, {stage}: {said}" + ("" if end.seconds is None else f" ({end.seconds:.0f} s)")
