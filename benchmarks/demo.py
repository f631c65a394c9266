"""The whole way in one go: tune two tasks, merge, fold, export, time, serve, ask. `make demo`.

Every step is a command that the reader can type too; it is shown before it runs.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from training.tasks import find

FOLDER = Path("build/demo")
STORE = FOLDER / "artifacts"
TASKS = ("digits", "sprites-location")
READY_SECONDS = 60


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


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Run `bentoml serve` on `store` and yield its address once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(port)]
    print(f"\n$ MOSA_ARTIFACTS={store} bentoml serve . --port {port}", flush=True)
    environment = {**os.environ, "MOSA_ARTIFACTS": str(store)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            log.seek(0)
            print(log.read()[-3000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    """Ask /readyz until it answers."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise SystemExit("the service did not start; its log is above")


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
    with served(STORE) as address:
        answers = [ask(address, task) for task in TASKS]

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
