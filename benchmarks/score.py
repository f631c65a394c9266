"""Measure `mosa score`: `python -m benchmarks.score --images 100000`, or `--quick` to see that it works.

Generated images in tar shards are scored by five tasks on the embedded backbone, once by adapters, which take a slot of
a batch each, once by adapters in the last two of six blocks, which share what comes before, and once by probes, which
share one pass. A bare session runs before and after, on the same cores: the same graph and bank, in whole passes, on
images that are decoded and normalised. The first shard is left out.

Then the run is repeated in another folder, killed three times and gone on with; its rows must be the same, each once.
"""

import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import tyro

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.store_layout import PLAIN, StoreLayout
from mosa_deploy.errors import command
from mosa_deploy.graphs.adapter_weights import adapter_weights, choose_layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.shared import SharedRunner
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.processes import cores
from mosa_deploy.utils.versions import provenance
from serving.score_decode import Encoded, Reading, decode
from serving.settings import Settings
from tests.support.tasks import TaskMaker, picture

KINDS = ("adapters", "last-blocks", "probes")
TASKS, DISTINCT, BOTTLENECK = 5, 256, 16
BATCHES = (4, 8, 16, 32)
"""The batch sizes that a bare session tries. `mosa score` finds its own, as it does for a user."""
LAST = 2
"""The blocks that tasks of the kind `last-blocks` adapt."""
KILLS = 3
BARE_SECONDS = 3.0
SAMPLE_SECONDS = 0.2
AIM = 0.9
SCORE = "import sys; from serving.commands import score; score(sys.argv[1:], 'mosa score')"


@dataclass(frozen=True)
class Config:
    """Measure the speed and the memory of `mosa score`, and whether a killed run has every row once."""

    images: int = 5000
    shard: int = 1000
    """Images of a tar file."""
    only: str = ""
    """`adapters`, `last-blocks` or `probes`; all if not given."""
    quick: bool = False
    """Only see whether it works: 400 images, short runs of the bare session, and nothing is written."""
    out: Path = Path("benchmarks/results/score.md")


@dataclass(frozen=True)
class Measured:
    """What was found of one kind of tasks."""

    kind: str
    rate: float
    """Images per second, each answered by all tasks."""
    seconds: float
    """The whole command."""
    bare: float
    decoding: float
    """Seconds that one core takes to decode an image; the bare session is spared them."""
    plain: float
    """The rate of the plain graph with one pass per image and task, without any task's weights."""
    most_bytes: int
    """The sum of the resident memory of all processes; pages that they share are counted for each."""
    rows: int
    finished: tuple[int, ...]
    """Shards that were finished at each kill."""
    once: bool
    """Whether the killed run had every row once in the end, and the same ones."""

    @property
    def bound(self) -> float:
        """The ratio to the bare session that is left if the cores also decode, and nothing else is added."""
        return 1 / (1 + self.decoding * self.bare / cores())


def write_shards(folder: Path, config: Config) -> Path:
    """Write the images, as tar files."""
    folder.mkdir()
    contents = [picture(seed, kind="jpeg", size=(96, 72)) for seed in range(DISTINCT)]
    for start in range(0, config.images, config.shard):
        with tarfile.open(folder / f"images-{start // config.shard:05d}.tar", "w") as archive:
            for i in range(start, min(start + config.shard, config.images)):
                member = tarfile.TarInfo(f"{i:07d}.jpg")
                member.size = len(contents[i % DISTINCT])
                archive.addfile(member, io.BytesIO(contents[i % DISTINCT]))
    return folder


def make_tasks(root: Path, kind: str) -> tuple[TaskMaker, list[Bundle]]:
    """A store of five tasks of a kind, and their bundles."""
    maker, bundles = TaskMaker(root), []
    for seed in range(TASKS):
        name = f"{kind}-{seed}"
        if kind == "probes":
            archive = maker.make(name, seed, method="linear", features="cls+mean")
        else:
            archive = maker.make(name, seed, BOTTLENECK, blocks=LAST if kind == "last-blocks" else None)
        maker.store(archive)
        bundles.append(archive.bundle())
    return maker, bundles


class Bare:
    """The graph of the tasks in a session of its own, with all cores, and the plain graph beside it."""

    def __init__(self, maker: TaskMaker, bundles: Sequence[Bundle]) -> None:
        folder = StoreLayout(maker.root).backbone(maker.backbone)
        shared = choose_layout(bundles[0].record, read_index(folder).files)
        bank = Bank(shared, BOTTLENECK, TASKS)
        written = [bank.write(adapter_weights(bundle)) for bundle in bundles]
        self.passes = TASKS if shared.by_slot else 1
        # Threads that spin are faster on idle cores, and much slower on cores that others use: the better one counts.
        self.shared = [SharedRunner(OnnxRunner(folder / shared.file, spinning=each), bank) for each in (True, False)]
        self.graph = OnnxRunner(folder / PLAIN)
        pixels = [maker.preprocess.read(maker.images[i % len(maker.images)]) for i in range(BATCHES[-1])]
        self.images = maker.preprocess.normalise(np.stack(pixels))
        self.slots = np.resize(np.array(written, dtype=np.int64), BATCHES[-1])

    def rate(self, seconds: float) -> float:
        """Images per second, each by all tasks, in the batch size that is fastest."""
        rates = [
            per_second(partial(runner.run, self.images[:size], self.slots[:size]), size, seconds)
            for runner in self.shared
            for size in BATCHES
        ]
        return max(rates) / self.passes

    def plain(self, seconds: float) -> float:
        """The same of the plain graph."""
        rates = [per_second(partial(self.graph.run, self.images[:size]), size, seconds) for size in BATCHES]
        return max(rates) / self.passes


def per_second(run: Callable[[], object], size: int, seconds: float) -> float:
    """Images per second of a session that runs one batch of this size at a time."""
    run()
    start = time.perf_counter()
    count = 0
    while (took := time.perf_counter() - start) < seconds:
        run()
        count += 1
    return count * size / took


def decoding(preprocess: Preprocess) -> float:
    """The seconds of a core that an image takes to be decoded, the shorter of two rounds."""
    images = [Encoded(str(seed), picture(seed, kind="jpeg", size=(96, 72))) for seed in range(DISTINCT)]
    taken = list[float]()
    for _ in range(2):
        start = time.thread_time()
        decode(images, Reading((preprocess,), Settings().max_pixels))
        taken.append(time.thread_time() - start)
    return min(taken) / DISTINCT


def command_of(store: Path, images: Path, out: Path) -> list[str]:
    """The command line that scores."""
    given = ("--store", store, "--tasks", "all", "--images", images, "--out", out)
    return [sys.executable, "-c", SCORE, *map(str, given)]


def environment() -> dict[str, str]:
    """The variables of the service that a measured run has."""
    return {**os.environ, "MOSA_RUNTIME": "onnxruntime-cpu", "MOSA_PRECISION": "fp32"}


@contextmanager
def watched(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Sample the resident memory of a process and its children; yields a list of the sums, in bytes."""
    samples, done = list[int](), threading.Event()

    def sample() -> None:
        own = psutil.Process(process.pid)
        while not done.wait(SAMPLE_SECONDS):
            total = 0
            try:
                for each in (own, *own.children(recursive=True)):
                    total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            samples.append(total)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def finished(out: Path) -> list[Path]:
    """The files of the finished shards, in the order in which they were finished."""
    return sorted(out.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)


def rows(out: Path) -> list[tuple[str, str, str]]:
    """File, task and class of every row of a run, sorted."""
    found = []
    for path in finished(out):
        columns = pyarrow.parquet.read_table(path).to_pydict()
        found += list(zip(columns["file"], columns["task"], columns["class"], strict=True))
    return sorted(found)


def rate_of(out: Path, config: Config) -> float:
    """Images per second after the first shard."""
    times = [path.stat().st_mtime for path in finished(out)]
    return (config.images - config.shard) / (times[-1] - times[0])


def kill_thrice(arguments: Sequence[str], out: Path, config: Config) -> tuple[int, ...]:
    """Run until a random moment and kill, three times, then to the end; returns the shards finished at each kill."""
    chance, counts = random.Random(0), list[int]()
    whole = -(-config.images // config.shard)
    for turn in range(1, KILLS + 1):
        process = subprocess.Popen(arguments, env=environment())
        while len(finished(out)) < min(whole - 1, turn * whole // (KILLS + 1)):
            time.sleep(0.05)
        time.sleep(chance.random())
        process.kill()
        process.wait()
        counts.append(len(finished(out)))
    subprocess.run(arguments, env=environment(), check=True)
    return tuple(counts)


def measure(kind: str, folder: Path, images: Path, config: Config) -> Measured:
    """Score by five tasks of a kind, and beside it by bare sessions; then once more with kills."""
    maker, bundles = make_tasks(folder / kind, kind)
    seconds = 1.0 if config.quick else BARE_SECONDS
    bare = Bare(maker, bundles)
    rates, plain = [bare.rate(seconds)], [bare.plain(seconds)]
    arguments = command_of(maker.root, images, folder / f"{kind}-out")
    start = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment())
    with watched(process) as samples:
        if process.wait():
            raise SystemExit(process.returncode)
    took = time.perf_counter() - start
    rates, plain = [*rates, bare.rate(seconds)], [*plain, bare.plain(seconds)]
    again = folder / f"{kind}-killed"
    counts = kill_thrice(command_of(maker.root, images, again), again, config)
    wanted, found = rows(folder / f"{kind}-out"), rows(again)
    once = len({row[:2] for row in found}) == len(found) == config.images * TASKS
    return Measured(
        kind=kind,
        rate=rate_of(folder / f"{kind}-out", config),
        seconds=took,
        bare=float(np.mean(rates)),
        decoding=decoding(maker.preprocess),
        plain=float(np.mean(plain)),
        most_bytes=max(samples),
        rows=len(wanted),
        finished=counts,
        once=once and found == wanted,
    )


def report(found: Sequence[Measured], config: Config) -> str:
    """The results in Markdown."""
    head = (
        *(
            "tasks",
            "images/s",
            "bare session, images/s",
            f"ratio (aim {AIM:g})",
            "ratio with decoding alone",
            "plain graph, images/s",
            "whole run, s",
        ),
        *("most resident, MB (aim < 1,000)", "rows", "shards finished at the kills", "every row once"),
    )
    lines = [
        (
            *(f"{TASKS} {each.kind}", f"{each.rate:.1f}", f"{each.bare:.1f}", f"{each.rate / each.bare:.3f}"),
            "" if each.kind == "last-blocks" else f"{each.bound:.3f}",
            *(f"{each.plain:.1f}", f"{each.seconds:.1f}", f"{each.most_bytes / 1e6:.0f}", f"{each.rows:,}"),
            *(", ".join(map(str, each.finished)), "yes" if each.once else "NO"),
        )
        for each in found
    ]
    said = (
        f"{config.images:,} generated JPEGs of 96 x 72 in tar shards of {config.shard:,}, embedded backbone, {cores()}"
        f" cores. The bare session runs the same graph with the same bank, one batch at a time on all cores, in the"
        f" fastest of the sizes {', '.join(map(str, BATCHES))}; `mosa score` finds its own sizes. The plain graph runs"
        f" as many passes without a bank. Tasks of the kind last-blocks adapt the last {LAST} of 6 blocks, and the"
        " bare session runs all blocks for each of them. Decoding takes"
        f" {1000 * min(each.decoding for each in found):.2f} ms of a core per image, which the bare session is spared."
    )
    return f"# `mosa score`\n\n{provenance('benchmarks.score')}\n\n{said}\n\n{table(head, lines, 'lrrrrrrrrrl')}\n"


@command
def main() -> None:
    """Measure, print the report, and write it unless the run is quick."""
    config = tyro.cli(Config, prog="benchmarks.score")
    if config.quick:
        config = Config(images=400, shard=50, only=config.only, quick=True)
    with tempfile.TemporaryDirectory(prefix="score-") as scratch:
        folder = Path(scratch)
        images = write_shards(folder / "images", config)
        kinds = [config.only] if config.only else KINDS
        text = report([measure(kind, folder, images, config) for kind in kinds], config)
    print(text)
    if not config.quick:
        write_text(config.out, text)


if __name__ == "__main__":
    main()
