"""Compare the latency of serving variants with the plain backbone: `mosa latency --bundle runs/digits --seconds 5`.

The variants (`export.variants`) run in turn, in one process, and each is compared with the plain backbone round by
round (`export.timing`). `--backbone vit_base_patch16_224 --random-weights --bottlenecks 16 64 256` times all variants.
"""

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np

from export.arguments import latency_config
from export.latency_plot import draw_ratios
from export.options import LatencyConfig
from export.timing import Row, Times, time_sessions
from export.trace import STAND_IN_CLASSES
from export.variants import MIXED_TASKS, Task, Variant, in_precision, random_task, write_variants
from mosa_deploy.adapters.restore import load_recorded, restore
from mosa_deploy.backbones.foldable import Transformer, image_size, topology_of
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError, ProviderError, command
from mosa_deploy.graphs.adapter_weights import adapter_weights
from mosa_deploy.runtimes.names import (
    ARITHMETIC_OF_FILES,
    GRAPH_RUNNERS,
    PRECISIONS,
    Arithmetic,
    GraphRunnerName,
    Precision,
)
from mosa_deploy.runtimes.runner import check_runner
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import ratio_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import machine, provenance

BOTTLENECK = 64
"""Default r of random adapters."""

SAME_SHAPES = ("plain", "control", "folded")
"""The variants of a bundle whose fold changes no shape."""

COLUMNS = (
    *("runner", "precision", "variant", "r", "batch", "median ms", "ratio to plain", "95 % interval", "FLOP ratio"),
    *("nodes", "optimised", "MB", "rounds"),
)

NOTES = """\
Ratio: latency over that of the plain graph by the same runner in the same precision. Every graph was opened again
{sessions} times; each opening gives the median ratio of its rounds, and the table has their geometric mean with
Student's 95 % interval. `control` is the plain graph again: it shows the noise. FLOP ratio: what the matrix products
predict. Nodes: in the file, and after ONNX Runtime has optimised it for the CPU. MB: the file and its banks. int8 files
are calibrated on noise: time depends on shapes alone.
"""


@dataclass(frozen=True)
class Subject:
    """What is timed: a backbone with a stand-in head, tasks by bottleneck, and a title."""

    model: Transformer
    tasks: dict[int, list[Task]]
    """By bottleneck; 0 is an adapter whose fold changes no shape."""
    words: str

    def variants(self, config: LatencyConfig) -> list[str]:
        """The variants to time, in the order of the table.

        Raises:
            ConfigError: one of them is for adapters beside the FFN alone.
        """
        names = config.chosen_variants
        others = [name for name in config.variants or () if name not in SAME_SHAPES]
        if 0 not in self.tasks:
            return names
        if others:
            raise ConfigError(
                f"--variants {' '.join(others)}: for adapters beside the FFN; this bundle's folds at the same shapes,"
                f" so choose among {', '.join(SAME_SHAPES)}"
            )
        return [name for name in names if name in SAME_SHAPES]


def subject(config: LatencyConfig) -> Subject:
    """Load the backbone and make the tasks: the bundle's, or random ones.

    Raises:
        ConfigError: the bundle has no adapter.
        MosaError: the bundle or the backbone cannot be used.
    """
    if config.bundle is not None:
        bundle = Bundle.load(config.bundle)
        record = bundle.record
        if record.adapter is None:
            raise ConfigError(
                f"'{record.task}' has no adapter to time: give a bundle that was tuned with --method mosa or adapter"
            )
        given = Weights("file", config.backbone_weights) if config.backbone_weights else None
        # Only to check that the task was tuned on these weights.
        restore(bundle, given)
        used = given or Weights(record.backbone.source)
        model = load_recorded(record, used, STAND_IN_CLASSES)
        own = Task(record.backbone.topology, adapter_weights(bundle), *bundle.head)
        if record.adapter.style != "parallel":
            return Subject(model, {0: [own]}, f"{record.task} on {record.backbone.name}, {record.adapter.style}")
        others = random_tasks(model, record.adapter.bottleneck)[1:]
        words = f"{record.task} on {record.backbone.name}, r = {record.adapter.bottleneck}"
        return Subject(model, {record.adapter.bottleneck: [own, *others]}, words)
    assert config.backbone is not None
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    model = load_backbone(config.backbone, weights, STAND_IN_CLASSES)
    bottlenecks = sorted(set(config.bottlenecks)) or [BOTTLENECK]
    words = f"{config.backbone}, r = {', '.join(map(str, bottlenecks))}"
    return Subject(model, {r: random_tasks(model, r) for r in bottlenecks}, words)


def random_tasks(model: Transformer, bottleneck: int) -> list[Task]:
    """Random tasks for a mixed batch."""
    return [random_task(topology_of(model), bottleneck, STAND_IN_CLASSES, seed) for seed in range(MIXED_TASKS)]


def choose_runners(names: Sequence[str] | None) -> list[GraphRunnerName]:
    """The runners of these names; with None, all that this machine has.

    Raises:
        ProviderError: this machine lacks a runner that was asked for.
    """
    if names is not None:
        for name in names:
            check_runner(name)
        return cast(list[GraphRunnerName], list(dict.fromkeys(names)))
    found: list[GraphRunnerName] = []
    for name in GRAPH_RUNNERS:
        try:
            check_runner(name)
        except ProviderError:
            continue
        found.append(name)
    return found


def files_of(runners: Sequence[GraphRunnerName], precisions: Sequence[str]) -> list[tuple[GraphRunnerName, Precision]]:
    """The runners, each with the precisions of the files that suit it.

    Raises:
        ConfigError: no runner takes files of one of the precisions.
    """
    for name in precisions:
        if not any(name in ARITHMETIC_OF_FILES[runner] for runner in runners):
            suited = [runner for runner, files in ARITHMETIC_OF_FILES.items() if name in files]
            raise ConfigError(
                f"--precisions {name}: {', '.join(runners)} would run it slower than fp32; it suits {', '.join(suited)}"
            )
    return [
        (runner, file)
        for file in PRECISIONS
        if file in precisions
        for runner in runners
        if file in ARITHMETIC_OF_FILES[runner]
    ]


def measure(config: LatencyConfig, given: Subject, pairs: Sequence[tuple[GraphRunnerName, Precision]]) -> list[Row]:
    """Write the graphs and time them: one row per runner, precision, batch size and variant."""
    names = given.variants(config)
    height, width = image_size(given.model)
    batches = [
        np.random.default_rng(size).standard_normal((size, 3, height, width), dtype=np.float32)
        for size in config.batch_sizes
    ]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        print("tracing", flush=True)
        written = write_variants(Path(scratch), given.model, given.tasks, names)
        variants = {file: in_precision(written, file, batches[0]) for file in dict.fromkeys(file for _, file in pairs)}
        for runner, file in pairs:
            precision = ARITHMETIC_OF_FILES[runner][file]
            print(f"timing {len(written)} graphs by {runner} in {precision}", flush=True)
            opens = {each.label: functools.partial(each.open, runner, config.threads) for each in variants[file]}
            times = time_sessions(opens, batches, config.seconds, config.sessions, runner)
            for size, found in zip(config.batch_sizes, times, strict=True):
                rows += [row_of(runner, precision, each, size, found) for each in variants[file]]
    return rows


def row_of(runner: str, precision: Arithmetic, variant: Variant, batch: int, times: Times) -> Row:
    """Summarise the times of one variant at one batch size."""
    own = np.concatenate([opened[variant.label] for opened in times])
    ratios = [float(np.median(opened[variant.label] / opened["plain"])) for opened in times]
    ratio, low, high = ratio_interval(ratios)
    return Row(
        runner=runner,
        precision=precision,
        variant=variant.name,
        bottleneck=variant.bottleneck,
        batch=batch,
        sessions=len(times),
        rounds=len(own),
        median_ms=float(np.median(own)),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        flop_ratio=variant.flop_ratio,
        nodes=variant.nodes,
        optimised_nodes=variant.optimised_nodes,
        megabytes=variant.megabytes,
    )


def latency_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = []
    for row in rows:
        what = (row.runner, row.precision, row.variant, row.bottleneck or "", row.batch)
        interval = f"{row.ratio_low:.3f} - {row.ratio_high:.3f}"
        ratios = (f"{row.median_ms:.2f}", f"{row.ratio:.3f}", interval, f"{row.flop_ratio:.4f}")
        counts = (row.nodes, row.optimised_nodes, f"{row.megabytes:.1f}", row.rounds)
        lines.append((*what, *ratios, *counts))
    return table(COLUMNS, lines)


def write(config: LatencyConfig, words: str, rows: Sequence[Row]) -> None:
    """Write `latency.csv`, `latency.md` with machine and versions, and `latency.png`."""
    write_csv(config.out / "latency.csv", [field.name for field in fields(Row)], map(astuple, rows))
    head = f"# Latency of {words}\n\n{provenance('export.latency')}"
    write_text(
        config.out / "latency.md", f"{head}\n\n{latency_table(rows)}\n\n{NOTES.format(sessions=config.sessions)}"
    )
    draw_ratios(config.out / "latency.png", f"{words}; {machine()}", rows)


def print_latency(config: LatencyConfig) -> None:
    """Time the variants, write the results, and print their table."""
    pairs = files_of(choose_runners(config.runners), config.precisions)
    given = subject(config)
    rows = measure(config, given, pairs)
    write(config, given.words, rows)
    print(latency_table(rows))
    print(f"written to {config.out}")


@command
def main() -> None:
    """The command line."""
    print_latency(latency_config())


if __name__ == "__main__":
    main()
