"""Time the folded graph against the plain one: `python -m export.latency --bundle runs/digits`.

Plain, plain again (the control), and folded run in turn, in one process, in an order that is drawn anew each round. The
ratio of each round is free of slow drifts of the machine; its median is given with a 95 % bootstrap interval.
"""

import copy
import csv
import io
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.stats import bootstrap
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from export.graphs import STAND_IN_CLASSES, node_types, optimised_node_types, write_onnx
from export.plots import draw_ratios
from mosa_deploy.attach import adapters, attach
from mosa_deploy.backbone import Weights, load_backbone, randomise
from mosa_deploy.bundle import Bundle
from mosa_deploy.config import AdapterConfig
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.files import write_text
from mosa_deploy.fold import fold
from mosa_deploy.merge import merge
from mosa_deploy.restore import restore
from mosa_deploy.runners import OnnxRunner
from mosa_deploy.versions import library_versions, machine

VARIANTS = ("plain", "control", "folded")
WARM_UP = 3


@dataclass(frozen=True)
class LatencyConfig:
    """Compare the latency of a folded task with the plain backbone's."""

    bundle: Path | None = None
    """A run's folder; or give --backbone."""
    backbone: str | None = None
    """A plain timm ViT, to time it with an adapter of random values."""
    backbone_weights: Path | None = None
    random_weights: bool = False
    """Random weights, every 1-D tensor perturbed: time depends on shapes alone."""
    bottleneck: int = 64
    """r of the random adapter."""
    batch_sizes: tuple[int, ...] = (1, 8)
    seconds: float = 20.0
    """Time for the rounds of each batch size."""
    threads: int = 0
    """Cores for one inference; 0 takes all."""
    out: Path = Path("artifacts/latency")
    """Where latency.csv, latency.md and latency.png go."""


@dataclass(frozen=True)
class Row:
    """One variant at one batch size; ratios are against plain, round by round."""

    variant: str
    batch: int
    rounds: int
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    flop_ratio: float
    nodes: int
    optimised_nodes: int


def models(config: LatencyConfig) -> tuple[VisionTransformer, VisionTransformer, str]:
    """The plain and the folded model, and what they are in words.

    Raises:
        ConfigError: neither or both of a bundle and a backbone are given.
        MosaError: the bundle or the backbone does not fit.
    """
    if config.bundle is not None and config.backbone is None:
        bundle = Bundle.load(config.bundle)
        record = bundle.record
        given = Weights("file", config.backbone_weights) if config.backbone_weights else None
        folded = fold(merge(restore(bundle, given)))
        size = record.preprocess.size
        plain = load_backbone(
            record.backbone.name, given or Weights(record.backbone.source), STAND_IN_CLASSES, img_size=size
        )
        return plain, folded, f"{record.task} on {record.backbone.name}"
    if config.bundle is not None or config.backbone is None:
        raise ConfigError("give either --bundle FOLDER or --backbone NAME")
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    plain = load_backbone(config.backbone, weights, STAND_IN_CLASSES)
    adapted = attach(copy.deepcopy(plain), AdapterConfig(config.bottleneck), split=False)
    for adapter in adapters(adapted):
        randomise(adapter)
    return plain, fold(adapted), f"{config.backbone}, r = {config.bottleneck}"


def flops(model: VisionTransformer) -> int:
    """Floating-point operations of matrix products for one image."""
    height, width = model.patch_embed.img_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, height, width))
    return int(counter.get_total_flops())


def time_rounds(
    runners: dict[str, OnnxRunner], images: NDArray[np.float32], seconds: float
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each runner in each round, until the time is up and there are at least 10 rounds."""
    rng = np.random.default_rng(0)
    for runner in runners.values():
        for _ in range(WARM_UP):
            runner.run(images)
    times: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    end = time.perf_counter() + seconds
    with tqdm(desc=f"batch {len(images)}", unit=" rounds", leave=False, disable=None) as bar:
        while time.perf_counter() < end or len(times[names[0]]) < 10:
            for i in rng.permutation(len(names)):
                start = time.perf_counter()
                runners[names[i]].run(images)
                times[names[i]].append(1000 * (time.perf_counter() - start))
            bar.update()
    return {name: np.array(values) for name, values in times.items()}


def ratio_interval(ratios: NDArray[np.float64]) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    found = bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=0)
    return float(np.median(ratios)), float(found.confidence_interval.low), float(found.confidence_interval.high)


def measure(config: LatencyConfig, plain: VisionTransformer, folded: VisionTransformer) -> list[Row]:
    """Trace both models and time them; one row a variant and batch size."""
    flop_ratio = flops(folded) / flops(plain)
    height, width = plain.patch_embed.img_size
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch) / f"{name}.onnx" for name in ("plain", "folded")}
        for name, model in (("plain", plain), ("folded", folded)):
            print(f"tracing {name}", flush=True)
            write_onnx(model, paths[name])
        paths["control"] = paths["plain"]
        nodes = {name: sum(node_types(path).values()) for name, path in paths.items()}
        optimised = {name: sum(optimised_node_types(p, Path(scratch) / "o.onnx").values()) for name, p in paths.items()}
        # A session's idle threads must not spin while the next one is timed.
        runners = {name: OnnxRunner(paths[name], threads=config.threads, spinning=False) for name in VARIANTS}
        for batch in config.batch_sizes:
            images = np.random.default_rng(batch).standard_normal((batch, 3, height, width), dtype=np.float32)
            times = time_rounds(runners, images, config.seconds)
            for name in VARIANTS:
                ratio, low, high = ratio_interval(times[name] / times["plain"])
                rows.append(
                    Row(
                        variant=name,
                        batch=batch,
                        rounds=len(times[name]),
                        median_ms=float(np.median(times[name])),
                        ratio=ratio,
                        ratio_low=low,
                        ratio_high=high,
                        flop_ratio=flop_ratio if name == "folded" else 1.0,
                        nodes=nodes[name],
                        optimised_nodes=optimised[name],
                    )
                )
    return rows


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    titles = (
        "variant",
        "batch",
        "median ms",
        "ratio to plain",
        "95 % interval",
        "FLOP ratio",
        "nodes",
        "optimised",
        "rounds",
    )
    lines = [titles, ("---",) * len(titles)]
    for row in rows:
        interval = f"{row.ratio_low:.3f} - {row.ratio_high:.3f}"
        ratios = (f"{row.median_ms:.2f}", f"{row.ratio:.3f}", interval, f"{row.flop_ratio:.4f}")
        counts = (str(row.nodes), str(row.optimised_nodes), str(row.rounds))
        lines.append((row.variant, str(row.batch), *ratios, *counts))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(config: LatencyConfig, what: str, rows: list[Row]) -> None:
    """`latency.csv`, `latency.md` with machine and versions, and `latency.png`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, asdict(rows[0]))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(config.out / "latency.csv", buffer.getvalue())
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    command_line = shlex.join(["python", "-m", "export.latency", *sys.argv[1:]])
    head = f"# Folded against plain: {what}\n\n`{command_line}`; {machine()}; ONNX Runtime CPU, fp32; {versions}\n\n"
    write_text(config.out / "latency.md", f"{head}{table(rows)}\n")
    shown = [row for row in rows if row.variant != "plain"]
    points = [
        (f"{row.variant}, batch {row.batch}", row.ratio, row.ratio_low, row.ratio_high, row.flop_ratio) for row in shown
    ]
    draw_ratios(config.out / "latency.png", f"{what}, {machine()}", points)


@command
def main() -> None:
    """The command line."""
    config = tyro.cli(LatencyConfig, prog="python -m export.latency", config=(tyro.conf.FlagCreatePairsOff,))
    plain, folded, what = models(config)
    rows = measure(config, plain, folded)
    write(config, what, rows)
    print(table(rows))
    print(f"written to {config.out}")


if __name__ == "__main__":
    main()
