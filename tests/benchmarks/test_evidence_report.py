from collections.abc import Iterator
from dataclasses import astuple, fields
from itertools import product
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.evidence import Config, Row
from benchmarks.evidence_report import accuracies_table, as_auto, by_validation, compared, differences_table, report
from mosa_deploy.utils.files import write_csv

ACCURACIES = {"linear": 0.70, "attentive": 0.72, "adapter": 0.74, "mosa-balanced": 0.75}
SEEDS = range(5)


def made() -> Iterator[Row]:
    """Two tasks, four methods and five seeds with noise of a point; the adapters' validation is that of their test."""
    noise = np.random.default_rng(0)
    for task, (method, mean), seed in product(("bolts", "nuts"), ACCURACIES.items(), SEEDS):
        test = mean + 0.01 * float(noise.standard_normal())
        yield Row(task, method, "{}", seed, 100, test, 1.0, test, 9.0, "machine", "commit")


ROWS = list(made())


def measured(task: str, method: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = {row.seed: row.test_accuracy for row in ROWS if (row.task, row.method) == (task, method)}
    return np.array([values[seed] for seed in SEEDS], dtype=np.float64)


def test_the_mean_of_the_tasks_has_the_interval_of_a_paired_t_test() -> None:
    first, second = ([measured(task, method) for task in ("bolts", "nuts")] for method in ("mosa-balanced", "adapter"))
    expected = ttest_rel(np.mean(first, axis=0), np.mean(second, axis=0))
    interval = expected.confidence_interval(0.95)
    mean = 100 * float(np.mean(np.subtract(first, second)))
    cell = f"{mean:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    text = differences_table(ROWS, [("mosa-balanced", "adapter")])
    assert text.splitlines()[-1].endswith(f"| {cell} |")


def test_the_best_probe_is_chosen_on_validation_for_each_task_and_seed() -> None:
    line = next(line for line in accuracies_table(ROWS).splitlines() if line.startswith("| best probe |"))
    chosen = [np.maximum(measured(task, "linear"), measured(task, "attentive")).mean() for task in ("bolts", "nuts")]
    assert line == f"| best probe | {100 * chosen[0]:.2f} | {100 * chosen[1]:.2f} | {100 * np.mean(chosen):.2f} |"


@pytest.mark.parametrize(("gain", "method"), [(0.004, "linear"), (0.02, "adapter")])
def test_auto_takes_an_adapter_only_if_it_is_worth_its_pass(gain: float, method: str) -> None:
    rows = [
        Row("bolts", "linear", "{}", 0, 9, 0.7, 1.0, 0.7, 1.0, "machine", "commit"),
        Row("bolts", "adapter", "{}", 0, 9, 0.7 + gain, 1.0, 0.7, 1.0, "machine", "commit"),
    ]
    auto = as_auto(by_validation(rows, ["linear"]), by_validation(rows, ["adapter"]))
    assert auto("bolts", 0).method == method


def test_the_runs_of_another_plan_stand_beside_a_plans_own(tmp_path: Path) -> None:
    plan = """
        test = true
        seeds = [0, 1]
        beside = "earlier"
        reference = "mosa"
        defaults = { task = "digits" }
        tasks = { digits = {} }
        methods = { ssf = { options = { method = "ssf" }, settings = [{}] } }
    """
    (tmp_path / "methods.toml").write_text(dedent(plan))
    columns = [field.name for field in fields(Row)]
    for name, method, accuracy in (("methods", "ssf", 0.72), ("earlier", "mosa", 0.70)):
        rows = [Row("digits", method, "{}", seed, 9, 0.8, 1.0, accuracy, 1.0, "machine", "commit") for seed in (0, 1)]
        write_csv(tmp_path / f"{name}.csv", columns, map(astuple, rows))
    text = report(Config("methods", plans=tmp_path, results=tmp_path))
    assert "| mosa | 70.00 | 70.00 |" in text
    assert "| ssf - mosa | +2.00 (+2.00 to +2.00) |" in text


def test_a_plan_with_a_reference_compares_every_other_method_with_it() -> None:
    assert compared(["none", "flip", "crop"], "none") == [("flip", "none"), ("crop", "none")]
    assert ("mosa", "adapter") in compared(["adapter", "mosa"], None)
