"""Compare methods on a plan of tasks, run by run, in the background: `python -m benchmarks.evidence develop`.

A plan, `benchmarks/evidence/NAME.toml`, lists tasks, methods with the settings they try, and seeds. Each finished run
is one line of `benchmarks/results/evidence/NAME.csv`, and the grid goes on from that file alone, also on another
machine. A run's seed also draws its training images. The test sets are read only by plans that say so.
"""

import contextlib
import csv
import dataclasses
import json
import shutil
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import tyro
from joblib import Parallel, delayed
from tqdm import tqdm

from mosa_deploy.errors import ConfigError, command, unknown_name
from mosa_deploy.utils.files import write_csv
from mosa_deploy.utils.versions import git_commit, machine
from training import run
from training.config import TuneConfig
from training.evaluate import evaluate
from training.method_settings import UNCHANGED
from training.options import EvaluateConfig
from training.tune import tune
from training.tune_options import AugmentOptions, StreamOptions

FOLDER = Path(__file__).parent

FACTOR = "_x"
"""The end of an option's name that multiplies what the task says, e.g. `lr_x`."""


@dataclass(frozen=True)
class Config:
    """Carry out the runs of a plan that its CSV lacks."""

    plan: tyro.conf.Positional[str]
    """Name of a plan in benchmarks/evidence: develop or confirm."""
    data_dir: Path = Path("../shared/data")
    """Folder of the tasks' images."""
    weights: Path = Path("../shared/weights/vit_small_patch14_dinov2.safetensors")
    """Weights of the plan's backbone."""
    jobs: int = 1
    """Runs at a time, each with one thread."""
    device: str = "cpu"
    """Where they run: cpu or cuda."""
    commit: str | None = None
    """The code's commit, where it does not run from a checkout."""
    limit: int | None = None
    """Stop after this many runs."""
    work: Path = Path("runs/evidence")
    """Folder of the runs under way."""
    plans: Path = FOLDER / "evidence"
    """Folder of the plans."""
    results: Path = FOLDER / "results" / "evidence"
    """Folder of the CSVs."""


@dataclass(frozen=True)
class Row:
    """A finished run, as a line of the CSV."""

    task: str
    method: str
    setting: str
    seed: int
    parameters: int
    validation_accuracy: float
    validation_nll: float
    test_accuracy: float | None
    seconds: float
    machine: str
    commit: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells runs apart."""
        return self.task, self.method, self.setting, self.seed

    @classmethod
    def parse(cls, fields: dict[str, str]) -> Self:
        """Read a line.

        Raises:
            ValueError: the line is cut short or damaged.
        """
        if any(fields.get(field.name) is None for field in dataclasses.fields(cls)) or None in fields:
            raise ValueError(f"{len(fields)} columns")
        numbers: dict[str, Any] = {
            "seed": int(fields["seed"]),
            "parameters": int(fields["parameters"]),
            "validation_accuracy": float(fields["validation_accuracy"]),
            "validation_nll": float(fields["validation_nll"]),
            "test_accuracy": float(fields["test_accuracy"]) if fields["test_accuracy"] else None,
            "seconds": float(fields["seconds"]),
        }
        return cls(**{**fields, **numbers})


@dataclass(frozen=True)
class Job:
    """One run of a plan."""

    task: str
    method: str
    setting: str
    """The setting's options as JSON."""
    seed: int
    config: TuneConfig
    test: bool

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells runs apart."""
        return self.task, self.method, self.setting, self.seed


def load_plan(config: Config) -> dict[str, Any]:
    """A plan as its file has it.

    Raises:
        ConfigError: there is no such plan.
    """
    known = sorted(path.stem for path in config.plans.glob("*.toml"))
    if config.plan not in known:
        raise ConfigError(unknown_name("plan", config.plan, known))
    return tomllib.loads((config.plans / f"{config.plan}.toml").read_text())


def read_plan(config: Config) -> list[Job]:
    """The runs of a plan, in the order in which a part of them says most: all tasks and methods before a next setting.

    Raises:
        ConfigError: there is no such plan, or an option in it is unknown.
    """
    plan = load_plan(config)
    tries = max(len(method["settings"]) for method in plan["methods"].values())
    return [
        _job(config, plan, task, method, method_options["settings"][i], seed)
        for seed in plan["seeds"]
        for i in range(tries)
        for task in plan["tasks"]
        for method, method_options in plan["methods"].items()
        if i < len(method_options["settings"])
    ]


def _job(config: Config, plan: dict[str, Any], task: str, method: str, setting: dict[str, Any], seed: int) -> Job:
    options = plan["defaults"] | plan["tasks"][task] | plan["methods"][method]["options"] | setting
    factors = {name: options.pop(name) for name in [*options] if name.endswith(FACTOR)}
    for name, factor in factors.items():
        options[name.removesuffix(FACTOR)] *= factor
    if "backbone" in plan["tasks"][task]:
        options |= {"image_size": None}
    else:
        options |= {"backbone_weights": config.weights}
    if "data_dir" in options:
        options |= {"data_dir": config.data_dir / options["data_dir"]}
    changing = {name: options.pop(name) for name in UNCHANGED if name in options}
    unknown = sorted(options.keys() - {field.name for field in dataclasses.fields(TuneConfig)})
    if unknown:
        raise ConfigError(f"{config.plan}.toml: unknown option {unknown[0]}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    text = json.dumps(setting, sort_keys=True)
    made = TuneConfig(**options, name=task, seed=seed, draw=seed, augmentation=AugmentOptions(**changing))
    return Job(task, method, text, seed, made, plan["test"])


def read_rows(path: Path) -> list[Row]:
    """The finished runs; a line that was cut short is left out with a word, so that its run is done again."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="") as handle:
        for number, fields in enumerate(csv.DictReader(handle), start=2):
            try:
                rows.append(Row.parse(fields))
            except (ValueError, TypeError) as error:
                print(f"{path}, line {number} is damaged ({error}): its run is done again")
    return rows


def carry_out(job: Job, work: Path, device: str, commit: str) -> Row:
    """Tune one job, evaluate it if its plan reads the test sets, and remove its folder."""
    torch.set_num_threads(1)
    out = work / f"{job.task}-{job.method}-{job.seed}-{abs(hash(job.setting)):x}"
    shutil.rmtree(out, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with out.with_suffix(".log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        # Each of many runs on a GPU would start a process per core to augment images.
        tune(dataclasses.replace(job.config, out=out, device=device, streaming=StreamOptions(workers=1)))
        seconds = time.monotonic() - start
        tested = None
        if job.test:
            measured = evaluate(EvaluateConfig(bundle=out, backbone_weights=job.config.backbone_weights, device=device))
            tested = measured["accuracy"]
    metrics = json.loads((out / run.METRICS).read_text())
    shutil.rmtree(out)
    return Row(
        *job.key,
        parameters=int(metrics["parameters"]),
        validation_accuracy=metrics["validation_accuracy"],
        validation_nll=metrics["validation_nll"],
        test_accuracy=tested,
        seconds=round(seconds, 1),
        machine=torch.cuda.get_device_name() if device == "cuda" else machine(),
        commit=commit[:12],
    )


def results(jobs: list[Job], config: Config) -> Iterator[Row]:
    """The rows of jobs as they finish."""
    commit = config.commit or git_commit() or "unknown"
    made = Parallel(n_jobs=config.jobs, return_as="generator_unordered")(
        delayed(carry_out)(job, config.work, config.device, commit) for job in jobs
    )
    yield from tqdm(made, total=len(jobs), unit=" runs")


def grid(config: Config) -> None:
    """Carry out what the CSV lacks, one line per finished run.

    Raises:
        MosaError: there is no such plan, or a run of it cannot be carried out.
    """
    path = config.results / f"{config.plan}.csv"
    rows = read_rows(path)
    done = {row.key for row in rows}
    planned = read_plan(config)
    missing = [job for job in planned if job.key not in done][: config.limit]
    print(f"{config.plan}: {len(planned)} runs, {len(done)} of them done, {len(missing)} to do now")
    columns = [field.name for field in dataclasses.fields(Row)]
    for row in results(missing, config):
        rows.append(row)
        write_csv(path, columns, map(dataclasses.astuple, rows))
        tqdm.write(f"{row.task} {row.method} {row.setting} seed {row.seed}: validation {row.validation_accuracy:.4f}")


@command
def main() -> None:
    """The command line."""
    grid(tyro.cli(Config, description=__doc__))


if __name__ == "__main__":
    main()
