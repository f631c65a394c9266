"""The whole workflow in one run: tune two tasks, merge, fold, export, time, serve, ask. Run it with `make demo`.

Every step is a command that you can type yourself; it is shown before it runs. The two tasks are tuned at once, each on
one core, because models this small are slower with two threads than with one.
"""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from tests.support.service import serve
from training.plots import drawn, quiet
from training.tasks import find

FOLDER = Path("build/demo")
STORE = FOLDER / "artifacts"
TASKS = ("digits", "sprites-location")
EPOCHS = {"digits": "6", "sprites-location": "8"}
"""Fewer than in the presets (8 and 10), so that the demo ends within five minutes."""

ONE_EXPORT = threading.Lock()

METHODS = {"linear": "without an adapter", "mosa": "with MoSA"}

Accuracy = Mapping[tuple[str, str], float]


def run(prefix: str, *arguments: str, threads: int | None = None) -> None:
    """Show a command, run it, and print its output as it comes."""
    print(f"{prefix}$ mosa {shlex.join(arguments)}", flush=True)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with subprocess.Popen(
        [sys.executable, "-c", "from mosa_deploy.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{prefix}  {line}", end="", flush=True)
    if process.returncode:
        raise SystemExit(f"the demo stopped: the command above ended with {process.returncode}")


def share_right(run_folder: Path) -> float:
    """The share of right answers in what `mosa evaluate` left."""
    with (run_folder / "evaluation" / "predictions.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return float(np.mean([row["label"] == row["answer"] for row in rows]))


def tune_and_export(task: str) -> dict[tuple[str, str], float]:
    """Tune a task by the probe and by MoSA, read the test set for both, and export what MoSA tuned.

    Returns:
        The test accuracy by task and method.
    """
    prefix, found = f"{task:<16} ", dict[tuple[str, str], float]()
    for method in METHODS:
        folder = FOLDER / "runs" / f"{task}-{method}"
        out = str(folder)
        epochs = ("--epochs", EPOCHS[task]) if method == "mosa" else ()
        run(prefix, "tune", "--task", task, "--method", method, "--out", out, *epochs, threads=1)
        run(prefix, "evaluate", "--bundle", out, threads=1)
        found[task, method] = share_right(folder)
    # The first export traces the backbone for both tasks.
    with ONE_EXPORT:
        run(prefix, "export", "--bundle", str(FOLDER / "runs" / f"{task}-mosa"), "--out", str(STORE), threads=1)
    return found


def ask(address: str, task: str) -> str:
    """Classify the first test image of a task; returns the answer and the right class, in words."""
    splits = find(task).splits(None, None)
    example = splits.test[0]
    files = {"image": ("image.png", example.read())}
    answer = httpx.post(f"{address}/classify", files=files, data={"task": task, "top_k": "1"})
    answer.raise_for_status()
    (best,) = answer.json()["predictions"]
    return f"{best['label']} ({best['score']:.2f}), right is {splits.name_of(example.label)}"


def latencies() -> dict[str, float]:
    """Variant -> median milliseconds for one image."""
    with (FOLDER / "latency" / "latency.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["batch"] == "1" and row["runner"] == "onnxruntime-cpu"]
    return {row["variant"]: float(row["median_ms"]) for row in rows}


def draw_accuracy(path: Path, accuracy: Accuracy) -> None:
    """Plot the test accuracy of both tasks, without and with the adapter."""
    with drawn(path, 5.2, 3.2) as figure:
        axes = figure.subplots()
        for k, (method, words) in enumerate(METHODS.items()):
            places = [i + 0.38 * (k - 0.5) for i in range(len(TASKS))]
            bars = axes.bar(places, [100 * accuracy[task, method] for task in TASKS], 0.36, label=words)
            axes.bar_label(bars, fmt="%.1f", padding=2)
        axes.set(xticks=range(len(TASKS)), xticklabels=TASKS, ylabel="test accuracy (%)", ylim=(0, 112))
        axes.legend(frameon=False, loc="upper right")
        quiet(axes)


def closing(accuracy: Accuracy, milliseconds: Mapping[str, float], answers: Mapping[str, str]) -> str:
    """The table at the end."""
    rows = [("task", "linear probe", "with MoSA", "answer over HTTP")]
    rows += [(t, f"{accuracy[t, 'linear']:.4f}", f"{accuracy[t, 'mosa']:.4f}", answers[t]) for t in TASKS]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["   ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    ratio = milliseconds["folded"] / milliseconds["plain"]
    return "\n".join(
        [
            *lines,
            "",
            f"one image, digits: plain backbone {milliseconds['plain']:.2f} ms, folded {milliseconds['folded']:.2f} ms"
            f" ({ratio:.3f}); latency/latency.md has the intervals",
        ]
    )


def main() -> None:
    """Run the demo and print its results."""
    start = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    accuracy: dict[tuple[str, str], float] = {}
    with ThreadPoolExecutor(len(TASKS)) as pool:
        for found in pool.map(tune_and_export, TASKS):
            accuracy |= found
    digits = str(FOLDER / "runs" / "digits-mosa")
    run("", "latency", "--bundle", digits, "--seconds", "5", "--out", str(FOLDER / "latency"))
    with serve(STORE.resolve(), FOLDER) as server:
        print(f"$ mosa serve --artifacts {STORE}   # at {server.address}", flush=True)
        server.wait_until("ready")
        answers = {task: ask(server.address, task) for task in TASKS}
    draw_accuracy(FOLDER / "accuracy.png", accuracy)
    print(f"\n{closing(accuracy, latencies(), answers)}\n")
    print(f"One seed; benchmarks/results has more. Pictures: {FOLDER}/accuracy.png, {FOLDER}/latency/latency.png")
    print(f"Done in {time.monotonic() - start:.0f} s; everything lies in {FOLDER}.")


if __name__ == "__main__":
    main()
