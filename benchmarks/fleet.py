"""A fleet against the same commands in a row, and a fleet that is killed: `python -m benchmarks.fleet --tasks 50`.

Makes a file of small tasks on the embedded backbone, carries it out by `mosa fleet` and by `mosa tune`, `mosa evaluate`
and `mosa export` one after the other, each as a user starts it, and compares the seconds. Then another fleet of the
same tasks is killed, once its driver and once a worker, and goes on: no finished run may be tuned again, and a kill may
repeat one epoch of each task that was at work. On two cores 50 tasks take under an hour.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import psutil
import tyro

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance

TARGET = 1.7

KINDS: Sequence[Mapping[str, Any]] = (
    {"task": "digits", "method": "mosa", "shots": 50, "epochs": 4},
    {"task": "sprites-location", "method": "linear"},
    {"task": "digits", "method": "linear", "features": "cls+mean"},
    {"task": "sprites-orientation", "method": "adapter", "shots": 25, "epochs": 4},
    {"task": "digits", "method": "attentive", "shots": 50, "epochs": 20},
    {"task": "sprites-location", "method": "lora", "shots": 25, "epochs": 4},
)
"""The tasks, in turn; each has a seed of its own."""

MOSA = (sys.executable, "-c", "from mosa_deploy.cli import main; main()")


@dataclass(frozen=True)
class Config:
    """Compare a fleet with the same commands in a row, and kill one."""

    tasks: int = 6
    """Number of tasks."""
    jobs: int | None = None
    """Tasks at a time, as in `mosa fleet`."""
    kill: bool = True
    """Kill a fleet, too."""
    out: Path = Path("benchmarks/results/fleet.md")
    """The report to write."""


def options(number: int) -> dict[str, Any]:
    """What a task is tuned with."""
    return {**KINDS[number % len(KINDS)], "seed": number}


def write_tasks(path: Path, count: int) -> None:
    """Write the file of tasks."""
    parts = []
    for number in range(count):
        lines = [f"{name} = {value!r}" for name, value in options(number).items()]
        parts.append("\n".join([f"[tasks.task-{number:03}]", *lines]))
    write_text(path, "\n\n".join(parts) + "\n")
    assert len(tomllib.loads(path.read_text())["tasks"]) == count


def fleet_command(folder: Path, out: Path, config: Config) -> list[str]:
    """The command of a fleet."""
    jobs = [] if config.jobs is None else ["--jobs", str(config.jobs)]
    return [sys.executable, "-m", "training.fleet", str(folder / "tasks.toml"), "--out", str(out), *jobs]


def lines_in_a_row(folder: Path, count: int) -> Iterator[list[str]]:
    """The command lines of `mosa` that do the same, task by task."""
    for number in range(count):
        name = f"task-{number:03}"
        run = str(folder / "runs" / name)
        flags = [word for option, value in options(number).items() for word in (f"--{option}", str(value))]
        yield ["tune", *flags, "--name", name, "--out", run]
        yield ["evaluate", "--bundle", run]
        yield ["export", "--bundle", run, "--out", str(folder / "store")]


def environment() -> dict[str, str]:
    """The variables of a user's shell: nothing says how many threads a process may have."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def seconds_of(lines: Sequence[Sequence[str]], log: Path) -> float:
    """How long commands take, one after the other."""
    start = time.monotonic()
    with log.open("ab") as handle:
        for line in lines:
            subprocess.run(line, env=environment(), stdout=handle, stderr=handle, check=True)
    return time.monotonic() - start


@dataclass(frozen=True)
class Killed:
    """What two kills cost."""

    finished: int
    """Runs that were finished at either kill."""
    tuned_again: int
    """Those of them whose bundle was written again."""
    epochs: int
    """Epochs that were repeated, of all tasks."""
    same: bool
    """Whether every bundle is that of the fleet that was not killed."""


def bundles(out: Path) -> dict[str, int]:
    """When each finished run was written, by task."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/adapter.json")}


def kill_a_fleet(folder: Path, unbroken: Path, config: Config) -> Killed:
    """Kill the driver of a fleet after its first finished run, then a worker after the next, and let it end."""
    out, before = folder / "killed", dict[str, int]()
    line = fleet_command(folder, out, config)
    with (folder / "killed.log").open("ab") as log:
        for victim in ("driver", "worker"):
            with subprocess.Popen(line, env=environment(), stdout=log, stderr=log) as driver:
                while len(bundles(out)) <= len(before) and driver.poll() is None:
                    time.sleep(0.05)
                before |= bundles(out)
                workers = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
                for process in workers_of(driver.pid)[-1:] if victim == "worker" else [driver]:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        process.send_signal(signal.SIGKILL)
            psutil.wait_procs(workers, timeout=30)
        subprocess.run(line, env=environment(), stdout=log, stderr=log, check=True)
    after = bundles(out)
    logs = [path.read_text() for path in (out / "logs").glob("*.log")]
    told = [re.findall(r"^epoch (\d+)/", text, re.MULTILINE) for text in logs]
    return Killed(
        finished=len(before),
        tuned_again=sum(after[name] != written for name, written in before.items()),
        epochs=sum(len(epochs) - len(set(epochs)) for epochs in told),
        same=digests(out) == digests(unbroken),
    )


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes that carry out tasks: each is the child of a guard, which is a child of the fork server."""
    with suppress(psutil.NoSuchProcess):
        servers = psutil.Process(driver).children()
        return [fork for server in servers for guard in server.children() for fork in guard.children()]
    return []


def digests(out: Path) -> dict[str, str]:
    """The digest of each run's bundle."""
    return {path.parent.name: Bundle.load(path.parent).digest for path in (out / "runs").glob("*/adapter.json")}


def report(config: Config, row: float, fleet: float, again: float, killed: Killed | None) -> str:
    """The results in words."""
    jobs = config.jobs or joblib.cpu_count()
    rows = [
        (f"the same {3 * config.tasks} commands in a row", f"{row:.1f}"),
        (f"`mosa fleet`, {jobs} tasks at a time", f"{fleet:.1f}"),
        ("`mosa fleet` again, with nothing left to do", f"{again:.1f}"),
    ]
    text = f"""# A fleet of small tasks

{provenance("benchmarks.fleet")}

{config.tasks} tasks on the embedded backbone, in seconds:

{table(("what", "seconds"), rows, align="lr")}

The commands in a row take **{row / fleet:.2f}** times as long as the fleet; the target is {TARGET}.
"""
    if killed is None:
        return text
    verdict = "are those" if killed.same else "**are not those**"
    return f"""{text}
A fleet of the same tasks whose driver was killed, and then a worker, went on with the same command. Of
{killed.finished} runs that were finished by then, {killed.tuned_again} were tuned again. {killed.epochs} epochs were
repeated. Its bundles {verdict} of the fleet that was not killed, byte for byte.
"""


@command
def main() -> None:
    """The command line."""
    config = tyro.cli(Config, prog="python -m benchmarks.fleet")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tasks(folder / "tasks.toml", config.tasks)
        line = fleet_command(folder, folder / "fleet", config)
        fleet, again = (seconds_of([line], folder / "fleet.log") for _ in range(2))
        print(f"fleet {fleet:.1f} s, again {again:.1f} s", flush=True)
        row = seconds_of(
            [[*MOSA, *words] for words in lines_in_a_row(folder / "row", config.tasks)], folder / "row.log"
        )
        print(f"in a row {row:.1f} s, ratio {row / fleet:.2f}", flush=True)
        killed = kill_a_fleet(folder, folder / "fleet", config) if config.kill else None
    text = report(config, row, fleet, again, killed)
    write_text(config.out, text)
    print(text)


if __name__ == "__main__":
    main()
