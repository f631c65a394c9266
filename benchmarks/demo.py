"""The whole way in one go: tune two tasks, merge, fold, export, time, serve, ask. `make demo`.

Every step is a command that the reader can type too; it is shown before it runs.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.service import serve
from training.tasks import find

FOLDER = Path("build/demo")
STORE = FOLDER / "artifacts"
TASKS = ("digits", "sprites-location")


def run(*arguments: str) -> str:
    """Show a command, run it, pass its output on line by line, and return its last line."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    last = ""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            last = line.strip()
    if process.returncode:
        raise SystemExit(f"the demo stopped: the command above ended with {process.returncode}")
    return last


def ask(address: str, task: str) -> str:
    """Send the first test image of a task, and say what was answered and what was right."""
    splits = find(task).splits(None, None)
    example = splits.test[0]
    answer = httpx.post(
        f"{address}/classify",
        files={"image": ("image.png", example.read())},
        data={"task": task, "top_k": "3"},
    )
    answer.raise_for_status()
    return f"{task}: {answer.text}   (right: {splits.classes[example.label]})"


def main() -> None:
    """Run the way and print its figures."""
    start = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    accuracy = {}
    for task in TASKS:
        for method in ("linear", "mosa"):
            out = FOLDER / "runs" / f"{task}-{method}"
            run("-m", "training.tune", "--task", task, "--method", method, "--out", str(out))
            accuracy[task, method] = run("-m", "training.evaluate", "--bundle", str(out)).split("accuracy ")[1][:6]
    for task in TASKS:
        run("-m", "export", "--bundle", str(FOLDER / "runs" / f"{task}-mosa"), "--out", str(STORE))
    latency = ("--seconds", "5", "--out", str(FOLDER / "latency"))
    run("-m", "export.latency", "--bundle", str(FOLDER / "runs" / "digits-mosa"), *latency)
    with serve(STORE.resolve(), FOLDER) as server:
        print(f"\n$ MOSA_ARTIFACTS={STORE} bentoml serve .   # at {server.address}", flush=True)
        server.wait_until("ready")
        answers = [ask(server.address, task) for task in TASKS]

    print("\nTest accuracy, one seed (benchmarks/results has more)")
    for task in TASKS:
        print(f"  {task:<17} linear {accuracy[task, 'linear']}   MoSA {accuracy[task, 'mosa']}")
    print("\nLatency of folded against plain, and of plain against itself (the control)")
    print((FOLDER / "latency" / "latency.md").read_text().split("\n\n")[2].strip())
    print("\nTwo answers of one service")
    print("\n".join(f"  {answer}" for answer in answers))
    print(f"\nDone in {time.monotonic() - start:.0f} s; everything lies in {FOLDER}.")


if __name__ == "__main__":
    main()
