"""How much a service holds and what it costs: `python -m benchmarks.scale`; about 2 minutes per backbone.

It measures the service here: images per second of one core, of two and of two replicas, memory per task, and the time
to load a task. From these figures it simulates what cannot be measured on one machine: thousands of tasks of unequal
popularity, and enough replicas for a thousand requests per second. Both are written to `--out`, and into the page
docs/capacity.md, which lists the assumptions.

    python -m benchmarks.scale --weights vit_small_patch14_dinov2.safetensors    # DINOv2 ViT-S/14 too
    python -m benchmarks.scale --measured --rate 200 --tasks 500 --price 0.05    # simulate only, from what is there
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.scale_measurement import DISTINCT, Measured, measure
from benchmarks.scale_report import report
from benchmarks.scale_simulation import Load, Replica, Routing, che, needed
from benchmarks.serving import VIT_S
from benchmarks.serving_speed import Scale
from mosa_deploy.backbones.embedded import NAME as EMBEDDED
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.versions import provenance

PAGE = Path("docs/capacity.md")
START, END = "<!-- scale -->", "<!-- /scale -->"


@dataclass(frozen=True)
class Config:
    """Measure a service here, and simulate many of them."""

    weights: Path | None = None
    """The file of DINOv2 ViT-S/14's weights, which is measured at 98 px beside the embedded backbone."""
    measured: bool = False
    """Simulate from the figures in `out`, and measure nothing."""
    loaded_tasks: int = 64
    """Tasks that are measured."""
    seconds: float = 3
    """The length of each of three legs."""
    rate: float = 1000
    """Requests per second that are simulated, of one image each."""
    tasks: int = 10_000
    exponent: float = 1.0
    """Zipf's law: task k is asked in proportion to k ** -exponent."""
    slots: tuple[int, ...] = (256, 1024, 4096)
    """Numbers of loaded tasks (MOSA_ACTIVE) that are simulated."""
    p99: float = 0.25
    """Seconds within which 99 of 100 requests are to be answered."""
    price: float = 0.04
    """The price of a core for an hour, in any currency. The default is an example, not an offer."""
    memory: tuple[float, ...] = (2, 8, 32)
    """GB of memory for which the tasks that fit are told."""
    minutes: float = 2
    """The simulated time after the banks are full."""
    note: str = ""
    """A sentence about what is measured, such as that the machine was busy."""
    out: Path = Path("benchmarks/results/scale")
    page: Path = PAGE


def measurements(config: Config) -> dict[str, Any]:
    """Measure; returns what `measured.json` holds."""
    scales = [Scale(EMBEDDED, 16, DISTINCT, 32, 0, 3, 0)]
    if config.weights:
        scales.append(replace(scales[0], backbone=VIT_S, weights=config.weights, side=98))
    found = []
    for scale in scales:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"measuring {scale.backbone}", flush=True)
            found.append(asdict(measure(scale, config.loaded_tasks, config.seconds, Path(scratch))))
    return {"made by": provenance("benchmarks.scale"), "note": config.note, "backbones": found}


def simulations(config: Config, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Simulate each backbone with each number of slots, with both ways to choose a replica."""
    load = Load(config.rate, config.tasks, config.exponent, 60 * config.minutes)
    routings: tuple[Routing, ...] = ("any", "by task")
    found = []
    for each in measured:
        for slots in config.slots:
            replica = Replica(each.fixed, each.each, each.load, slots)
            for routing in routings:
                print(f"simulating {each.backbone}, {slots} slots, {routing}", flush=True)
                outcome = needed(load, replica, config.p99, routing)
                row = {"backbone": each.backbone, "slots": slots, "routing": routing, "hits by Che": che(load, slots)}
                found.append(row | (asdict(outcome) if outcome else {"replicas": None}))
    return found


def read_measured(folder: Path) -> dict[str, Any]:
    """What was measured before.

    Raises:
        ConfigError: nothing was.
    """
    path = folder / "measured.json"
    if not path.exists():
        raise ConfigError(f"--measured: there is no {path}: leave the option out to measure")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def into_page(page: str, text: str) -> str:
    """The page with another text between its two marks.

    Raises:
        ConfigError: it has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ConfigError(f"the page has no {START} and {END}, between which the figures are written")
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


@command
def main() -> None:
    """Measure, simulate, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.scale")
    page = into_page(config.page.read_text(), "") if config.page.exists() else None
    found = read_measured(config.out) if config.measured else measurements(config)
    measured = [Measured(**each) for each in found["backbones"]]
    settings = {name: value for name, value in asdict(config).items() if isinstance(value, int | float | tuple)}
    simulated = {"made by": provenance("benchmarks.scale"), "settings": settings, "rows": simulations(config, measured)}
    text = report(found, simulated)
    for name, content in (("measured", found), ("simulated", simulated)):
        write_text(config.out / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write_text(config.out / "scale.md", f"# Capacity\n\n{text}\n")
    if page is not None:
        write_text(config.page, into_page(page, text))
    print(text)


if __name__ == "__main__":
    main()
