"""Measure the service: `python -m benchmarks.serving`, or `--quick` to see that it works.

When a part ends, it writes `<part>.json` into `--out`, with date, machine and versions. `serving.md` is made from all
these files. So parts can be measured at different times (`--only slots,soak`), and an interrupted part does not affect
the others. Speed is measured on ViT-B/16 with random weights, `speed-s` on DINOv2 ViT-S/14, correctness and memory
on the embedded backbone. Quick runs use only the embedded backbone.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import tyro

from benchmarks.serving_auto import against_fp32
from benchmarks.serving_capacity import hot_add, memory, workers
from benchmarks.serving_slots import slots
from benchmarks.serving_soak import endurance, soak
from benchmarks.serving_socket import over_socket
from benchmarks.serving_speed import (
    EVENT_LOOP,
    Bench,
    Figures,
    Scale,
    against_bare,
    alternating,
    bench,
    loaded,
    mixed,
    profile,
)
from mosa_deploy.backbones.embedded import NAME as EMBEDDED
from mosa_deploy.bundles.store_layout import BACKBONES
from mosa_deploy.errors import ConfigError, command, unknown_name
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import command_line, git_commit, library_versions, machine

VIT_S, VIT_B = "vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_224"


@dataclass(frozen=True)
class Config:
    """Measure the service: its speed, memory and correctness under load."""

    only: str = ""
    """Comma-separated parts to measure; `speed` means all parts whose names begin so. Default: all."""
    quick: bool = False
    """Use small numbers and the embedded backbone, to check that everything works. The times mean little."""
    weights: Path | None = None
    """The file of DINOv2 ViT-S/14's weights, which `speed-s` serves; else they are random."""
    minutes: float = 20
    """Length of the endurance run in minutes."""
    out: Path = Path("benchmarks/results/serving")


@dataclass(frozen=True)
class Aim:
    """The target for one figure of a part."""

    part: str
    figure: str
    most: float | None = None
    least: float | None = None

    def verdict(self, value: float) -> str:
        """`met`, or by how much a value misses the target."""
        if self.least is not None and value < self.least:
            return f"missed by {self.least - value:.3g}"
        if self.most is not None and value > self.most:
            return f"missed by {value - self.most:.3g}"
        return "met"

    @property
    def words(self) -> str:
        """The target as text, e.g. `>= 0.9`."""
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"


AIMS = (
    Aim("speed-s", "ratio", least=2.0),
    Aim("speed-s", "mixed / one task", least=0.95),
    Aim("speed-s", "alternating / same task, p50", most=1.02),
    Aim("speed-b", "ratio", least=2.2),
    Aim("speed-b", "mixed / one task", least=0.95),
    Aim("speed-b", "alternating / same task, p50", most=1.02),
    Aim("bare", "ratio", least=0.90),
    Aim("bare", "wrong", most=0),
    Aim("load", "Poisson p99/p50", most=2.5),
    Aim("load", "steady p99/p50", most=2.5),
    Aim("mixed", "ratio", least=0.95),
    Aim("alternating", "ratio", most=1.02),
    Aim("embedded", EVENT_LOOP, most=1.0),
    Aim("memory-16", "ratio", most=1.2),
    Aim("memory-64", "ratio", most=1.2),
    Aim("hot-add", "p99 ms", most=300),
    Aim("workers", "not of the new version", most=0),
    Aim("soak", "wrong answers", most=0),
    Aim("soak", "other failures", most=0),
    Aim("soak-auto", "wrong answers", most=0),
    Aim("soak-auto", "other failures", most=0),
    Aim("slots", "wrong answers", most=0),
    Aim("slots", "failed", most=0),
    Aim("endurance", "growth %", most=2),
)


OfBench = Callable[[Bench], Figures]
Part = Callable[[Path], Iterator[tuple[str, Figures]]]
"""Measures in a folder of its own, and gives what it finds by name."""


def parts_of(config: Config, chosen: Collection[str]) -> Iterator[Part]:
    """What was chosen; parts of one scale share a running service."""
    for scale, shared in speed_parts(config):
        wanted = {name: part for name, part in shared.items() if name in chosen}
        if wanted:
            yield partial(on_one_service, scale, wanted)
    for name, part in other_parts(config).items():
        if name in chosen:
            yield partial(by_itself, name, part)


def on_one_service(scale: Scale, parts: dict[str, OfBench], folder: Path) -> Iterator[tuple[str, Figures]]:
    """(part, figures) of parts that share one service."""
    with bench(scale, folder) as made:
        for name, part in parts.items():
            yield name, {"backbone": scale.backbone, "r": scale.bottleneck} | part(made)


def by_itself(name: str, part: Callable[[Path], Figures], folder: Path) -> Iterator[tuple[str, Figures]]:
    """(part, figures) of a part with its own service."""
    yield name, part(folder)


def speed_parts(config: Config) -> list[tuple[Scale, dict[str, OfBench]]]:
    """(scale of the service, parts that share it)."""
    parts: dict[str, OfBench] = {"bare": against_bare, "mixed": mixed, "alternating": alternating, "load": loaded}
    if config.quick:
        small = Scale(EMBEDDED, 4, tasks=3, images=8, leg=24, rounds=2, arrivals=24)
        return [(small, {**parts, "embedded": profile})]
    large = Scale(VIT_B, 64, tasks=8, images=16, leg=32, rounds=16, arrivals=240)
    small = Scale(EMBEDDED, 16, tasks=8, images=16, leg=4000, rounds=4, arrivals=0)
    return [(large, parts), (small, {"embedded": profile})]


def auto_scales(config: Config) -> dict[str, Scale]:
    """What the parts that compare `auto` with fp32 serve."""
    if config.quick:
        return dict.fromkeys(
            ("speed-s", "speed-b"), Scale(EMBEDDED, 4, tasks=3, images=8, leg=24, rounds=2, arrivals=0)
        )
    size = Scale(VIT_B, 64, tasks=8, images=16, leg=64, rounds=12, arrivals=0)
    return {"speed-s": replace(size, backbone=VIT_S, weights=config.weights, side=224), "speed-b": size}


def other_parts(config: Config) -> dict[str, Callable[[Path], Figures]]:
    """Parts that each start their own service."""
    quick = config.quick

    def soaked(precision: str, folder: Path) -> Figures:
        return soak(folder, *((400, 20, 4, 16) if quick else (10_000, 500, 32, 64)), precision)

    def of(bottleneck: int) -> Callable[[Path], Figures]:
        counts = (12, 6, 2) if quick else (2000, 100, 10)
        return lambda folder: memory(folder, bottleneck, *counts)

    return {
        **{name: partial(against_fp32, scale) for name, scale in auto_scales(config).items()},
        "memory-16": of(16),
        "memory-64": of(64),
        "hot-add": lambda folder: hot_add(folder, *((10, 3) if quick else (2000, 100))),
        "workers": lambda folder: workers(folder, *((1, 20) if quick else (10, 200))),
        "socket": lambda folder: over_socket(folder, 200 if quick else 5000),
        **{name: partial(soaked, precision) for name, precision in (("soak", "fp32"), ("soak-auto", "auto"))},
        "slots": lambda folder: slots(folder, *((5_000, 8, 6) if quick else (1_000_000, 32, 24))),
        "endurance": lambda folder: endurance(folder, 6 if quick else 60 * config.minutes),
    }


def measure(config: Config) -> list[str]:
    """Run the chosen parts, each in its own folder, and write their figures; returns the names of these parts.

    Raises:
        ConfigError: a part is unknown.
    """
    known = [*chain(*(parts for _, parts in speed_parts(config))), *other_parts(config)]
    chosen = chosen_parts(config.only, known)
    written = []
    with tempfile.TemporaryDirectory(prefix="mosa-serving-") as scratch:
        for i, measured in enumerate(parts_of(config, chosen)):
            start = time.monotonic()
            for part, figures in measured(with_backbones(Path(scratch), f"{i}")):
                write_text(config.out / f"{part}.json", json.dumps(described(figures), indent=2) + "\n")
                print(f"{part}: {shown(figures)}; {time.monotonic() - start:.0f} s", flush=True)
                written.append(part)
    write_text(config.out / "serving.md", report(config.out))
    return written


def chosen_parts(only: str, known: Sequence[str]) -> list[str]:
    """The parts that `--only` names, each by its name or by the word that its name begins with; all if it is empty.

    Raises:
        ConfigError: a part is unknown.
    """
    given = [name for name in only.split(",") if name]
    of_name = {name: [part for part in known if part == name or part.startswith(f"{name}-")] for name in given}
    unknown = [unknown_name("part", name, known) for name, parts in of_name.items() if not parts]
    if unknown:
        raise ConfigError("; ".join(unknown))
    return [*chain(*of_name.values())] or list(known)


def with_backbones(scratch: Path, name: str) -> Path:
    """Make a part's folder. Its store reuses the backbones that an earlier part has traced."""
    store = scratch / name / "store"
    traced = next(scratch.glob(f"*/store/{BACKBONES}"), None)
    if traced is not None:
        shutil.copytree(traced, store / BACKBONES, copy_function=os.link)
    store.mkdir(parents=True, exist_ok=True)
    return scratch / name


def described(figures: Figures) -> dict[str, Any]:
    """Figures with date, command, machine, commit and versions."""
    line = command_line("benchmarks.serving")
    made = {"date": time.strftime("%Y-%m-%d"), "command": line, "machine": machine(), "commit": git_commit()}
    return {"figures": figures, **made, "versions": library_versions()}


def shown(figures: Figures) -> str:
    """Figures as one line."""
    return ", ".join(f"{name} {number(value)}" for name, value in figures.items())


def number(value: Any) -> str:
    """A figure as text, with four significant digits if it is a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(out: Path) -> str:
    """The text of `serving.md`, from the JSON files of all parts in a folder."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    rows = []
    for aim in AIMS:
        value = parts[aim.part]["figures"].get(aim.figure) if aim.part in parts else None
        measured = ("not measured", "") if value is None else (number(value), aim.verdict(value))
        rows.append((aim.part, aim.figure, aim.words, *measured))
    sections = ["# The service", table(("part", "figure", "aim", "measured", ""), rows)]
    for name, part in parts.items():
        versions = ", ".join(f"{library} {version}" for library, version in part["versions"].items())
        made = f"`{part['command']}`; {part['date']}; {part['machine']}; commit {part['commit']}\n{versions}"
        figures = [(figure, number(value)) for figure, value in part["figures"].items()]
        sections += [f"## {name}", made, table(("figure", ""), figures)]
    return "\n\n".join(sections) + "\n"


@command
def main() -> None:
    """Measure, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.serving", config=(tyro.conf.FlagCreatePairsOff,))
    measure(config)
    print((config.out / "serving.md").read_text().split("\n## ")[0])


if __name__ == "__main__":
    main()
