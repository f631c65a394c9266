"""The tables of `benchmarks.scale`, from what was measured and simulated."""

from collections.abc import Mapping
from typing import Any

from benchmarks.scale_measurement import Measured
from mosa_deploy.utils.markdown import table

Json = Mapping[str, Any]

SECONDS, MILLION = 3600, 1_000_000


def report(measured: Json, simulated: Json) -> str:
    """Everything between the marks of the page, without its head."""
    found, settings = [Measured(**each) for each in measured["backbones"]], simulated["settings"]
    price = settings["price"]
    parts = [
        "## Measured",
        measured["made by"],
        *([measured["note"]] if measured["note"] else []),
        speed(found),
        "## Tasks that fit",
        room(found, settings["memory"]),
        "## What an image costs",
        "`cost of a million images = price of a core-hour * 1,000,000 / (3600 * images/s of a core)`, here with"
        f" {price:g} for a core-hour (an example), for cores that are always busy:",
        costs(found, price),
        "## Simulated",
        simulated["made by"],
        f"{settings['rate']:,g} requests/s for {settings['tasks']:,} tasks, popularity by Zipf's law with exponent"
        f" {settings['exponent']:g}; replicas of one core, as few as answer 99 of 100 requests within"
        f" {settings['p99']:g} s.",
        replicas(simulated["rows"], settings),
    ]
    return "\n\n".join(parts)


def speed(found: list[Measured]) -> str:
    """Rates, loads and memory of each backbone."""
    rows: list[tuple[str, list[str]]] = [
        ("served by", [each.served_by for each in found]),
        ("images/s of one core, one request in flight", [f"{each.alone:.0f}" for each in found]),
        ("images/s of one core, 16 in flight", [f"{each.core:.0f}" for each in found]),
        ("the same in fp32", [f"{each.core_fp32:.0f}" for each in found]),
        ("images/s of one service on both cores, shared with the sender", [f"{each.two_cores:.0f}" for each in found]),
        ("images/s of two replicas of one core each, likewise", [f"{each.two_replicas:.0f}" for each in found]),
        ("CPU ms of one image, 16 in flight", [f"{1e3 * each.cpu:.2f}" for each in found]),
        ("ms to load a task again", [f"{1e3 * each.load:.1f}" for each in found]),
        ("MB of a service with one task", [f"{each.base / 1e6:.0f}" for each in found]),
        ("KB of each further task", [f"{each.task / 1e3:.0f}" for each in found]),
    ]
    head = ["", *(f"`{each.backbone}`, r = {each.bottleneck}" for each in found)]
    return table(head, [[name, *cells] for name, cells in rows], "l" + "r" * len(found))


def room(found: list[Measured], memory: list[float]) -> str:
    """How many tasks fit into so many GB."""
    rows = [[f"{gb:g} GB", *(f"{each.tasks_in(gb * 1e9):,}" for each in found)] for gb in memory]
    return table(["memory of a service", *(f"`{each.backbone}`" for each in found)], rows, "l" + "r" * len(found))


def costs(found: list[Measured], price: float) -> str:
    """The cost of a million images, by precision."""
    rows = [
        [f"`{each.backbone}`", name, f"{rate:.0f}", f"{million(price, rate):.3f}"]
        for each in found
        for name, rate in (("auto", each.core), ("fp32", each.core_fp32))
    ]
    return table(("backbone", "precision", "images/s of a core", "cost of a million images"), rows, "llrr")


def million(price: float, rate: float) -> float:
    """The cost of a million images at `rate` images per second, for a price per hour."""
    return price * MILLION / (SECONDS * rate)


def replicas(rows: list[Json], settings: Json) -> str:
    """What was simulated."""
    head = (
        *("backbone", "slots", "request goes to", "hits", "by Che", "replicas needed", "p50, ms", "p99, ms"),
        *("busiest core", "images per batch", "cost of a million images"),
    )
    lines = []
    for row in rows:
        chosen = "any replica" if row["routing"] == "any" else "its task's replica"
        known = row["routing"] == "any" or row["slots"] >= settings["tasks"]
        line = [f"`{row['backbone']}`", f"{row['slots']:,}", chosen]
        if row["replicas"] is None:
            why = "none found: too much for one of them" if row["routing"] == "by task" else "more than 256"
            lines.append([*line, *("",) * 2, why, *("",) * 5])
            continue
        cost = million(row["replicas"] * settings["price"], settings["rate"])
        lines.append(
            [
                *line,
                *(f"{row['hits']:.3f}", f"{row['hits by Che']:.3f}" if known else ""),
                *(row["replicas"], f"{1e3 * row['p50']:.1f}", f"{1e3 * row['p99']:.1f}"),
                *(f"{row['busy']:.2f}", f"{row['batch']:.1f}", f"{cost:.3f}"),
            ]
        )
    return table(head, lines, "lrlrrrrrrrr")
