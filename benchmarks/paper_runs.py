"""The runs of `benchmarks.paper`: what each is tuned with, where it lies, and what came of it."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import DataError
from training import run
from training.recipe import Recipe
from training.recipes import settings_of
from training.tasks import run_name
from training.tasks.benchmark import Benchmark
from training.tasks.vtab_lists import VtabLists

BACKBONE = "vit_base_patch16_224.orig_in21k"
"""ViT-B/16 pre-trained on ImageNet-21k, whose weights VPT and those after it call `ViT-B_16.npz`."""

FLEETS = "fleet-*"
"""The folders of the fleets: one for each GPU, or for a cluster."""


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    task: Benchmark
    recipe: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Its name in a fleet."""
        return f"{run_name(self.task.name)}.{self.recipe}.{self.method}.{self.seed}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells runs apart."""
        return self.task.name, self.recipe, self.method, self.seed

    def options(self, data_dir: Path, common: dict[str, Any]) -> dict[str, Any]:
        """What it is tuned with, as options of `mosa tune`; `common` are those of all runs.

        The paper's recipe for VTAB tunes on all 1,000 images, which only the lists tell.

        Raises:
            DataError: the images are not there.
        """
        folder, reader = self.task.locate(data_dir)
        own: dict[str, Any] = {"task": self.task.name, "data_dir": str(folder.resolve()), "recipe": self.recipe}
        if self.recipe != "ours" and isinstance(reader, VtabLists):
            own["split"] = "1000"
        return own | {"method": self.method, "seed": self.seed, "skip_duplicates": True} | common

    @property
    def train(self) -> int:
        """The number of images that it is tuned on, if the data set is whole."""
        train, validation, _ = self.task.counts
        return train + validation if self.recipe != "ours" and self.task.group == "vtab" else train

    @property
    def settings(self) -> Recipe:
        """The settings that decide how long it takes."""
        return dataclasses.replace(self.task.recipe, **settings_of(self.recipe, self.task.name))


@dataclass(frozen=True)
class Row:
    """A finished run, as a line of the CSV."""

    task: str
    recipe: str
    method: str
    seed: int
    train: int
    """The number of training images."""
    epochs: int
    parameters: int
    validation: float
    test: float
    split: str
    """How the images were split, in words."""
    backbone: str
    machine: str
    commit: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells runs apart."""
        return self.task, self.recipe, self.method, self.seed

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Read a line.

        Raises:
            ValueError: the line is cut short or damaged.
        """
        if (
            None in fields
            or None in fields.values()
            or fields.keys() != {each.name for each in dataclasses.fields(cls)}
        ):
            raise ValueError(f"{len(fields)} columns")
        whole = {name: int(fields[name]) for name in ("seed", "train", "epochs", "parameters")}
        return cls(**fields | whole | {name: float(fields[name]) for name in ("validation", "test")})

    @classmethod
    def of(cls, each: Run, folder: Path, machine: str) -> Self | None:
        """Read what a run left in its folder; None if it is not finished and evaluated."""
        evaluation = folder / run.EVALUATION / run.METRICS
        if not (folder / RECORD).is_file() or not evaluation.is_file():
            return None
        settings, kept = run.read_settings(folder), run.read_split(folder)
        metrics = json.loads((folder / run.METRICS).read_text())
        record = json.loads((folder / RECORD).read_text())
        return cls(
            *each.key,
            train=len(kept["train"]) if kept else 0,
            epochs=int(settings["epochs"]),
            parameters=int(metrics["parameters"]),
            validation=metrics["validation_accuracy"],
            test=json.loads(evaluation.read_text())["accuracy"],
            split=str(settings.get("split") or "as the data set has it"),
            backbone=record["backbone"]["name"],
            machine=machine,
            commit=str(record["git_commit"] or "unknown")[:12],
        )


def planned(tasks: Iterable[Benchmark], recipes: Sequence[str], methods: Sequence[str], seeds: int) -> list[Run]:
    """All runs of the grid, in the order in which a part of them says most: all tasks before a next seed."""
    found = list(tasks)
    return [
        Run(task, recipe, method, seed)
        for seed in range(seeds)
        for recipe in recipes
        for method in methods
        for task in found
    ]


def read_rows(path: Path) -> list[Row]:
    """The finished runs.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as handle:
            return [Row.parse(fields) for fields in csv.DictReader(handle)]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({error}): repair it, or remove it and run the command again") from None


def collect(runs: Iterable[Run], work: Path, known: Sequence[Row], machine: str) -> list[Row]:
    """The rows of all finished runs: those that are known, and those whose folders say so."""
    rows = {row.key: row for row in known}
    for each in runs:
        if each.key in rows:
            continue
        for folder in sorted(work.glob(f"{FLEETS}/runs/{each.name}")):
            row = Row.of(each, folder, machine)
            if row is not None:
                rows[each.key] = row
    return list(rows.values())


def task_file(runs: Iterable[Run], data_dir: Path, common: dict[str, Any]) -> str:
    """The file of a fleet that carries out these runs."""
    parts = []
    for each in runs:
        lines = [f"{name} = {json.dumps(value)}" for name, value in each.options(data_dir, common).items()]
        parts.append("\n".join([f'[tasks."{each.name}"]', *lines]))
    return "\n\n".join(parts) + "\n"
