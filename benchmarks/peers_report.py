"""`peers.md`: the results of `benchmarks.peers` as tables, one per model, number of tasks and precision."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_processes import INSTALL, PEERS
from mosa_deploy.utils.markdown import table

OURS = "ours"

Row = Mapping[str, Any]
Key = tuple[int, str]
"""The number of tasks, and the precision."""


def report(out: Path) -> str:
    """The text, from the JSON files of all models in a folder."""
    sections = ["# The service and its peers", LEGEND]
    for path in sorted(out.glob("*.json")):
        model = json.loads(path.read_text())
        sections += [f"## {model['title']}", made(model)]
        for (tasks, precision), rows in by_setting(model["rows"]).items():
            title = f"### {tasks} {'task' if tasks == 1 else 'tasks mixed'}, {precision}"
            sections += [title, setting_table(rows), *wrong_line(rows)]
    return "\n\n".join(sections) + "\n"


FIGURES = {"memory_mb": 0, "start_s": 1, "add_ms": 0}
"""The figures after the loads, and their digits after the point."""

LEGEND = (
    "Images per second (median of the rounds) and, in brackets, the 50th and 99th percentile of the latency in"
    " milliseconds, by requests in flight. `ours / it` compares images per second within each round, at the largest"
    " number in flight. Memory is that of all processes after the loads; what they share counts once. Start is the"
    " time until every task has answered. Adding a task takes until its first answer.\n\n"
    + "\n".join(f"- {peer.title}: at its best, {peer.at_best}." for peer in PEERS.values())
)


def made(model: Mapping[str, Any]) -> str:
    """What made the results of a model."""
    versions = ", ".join(f"{library} {version}" for library, version in model["versions"].items())
    return f"`{model['command']}`; {model['date']}; {model['machine']}; commit {model['commit']}\n{versions}"


def by_setting(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """The rows of each number of tasks and precision, in the order in which they were measured first."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row["tasks"], row["precision"]), []).append(row)
    return found


def setting_table(rows: Sequence[Row]) -> str:
    """One line per server."""
    counts = sorted({int(count) for row in rows for count in row["loads"]})
    head = ["server", *(f"{count} in flight" for count in counts), "ours / it", "MB", "start, s", "add a task, ms"]
    return table(head, lines(rows, counts), "l" + "r" * (len(head) - 1))


def lines(rows: Sequence[Row], counts: Sequence[int]) -> Iterator[list[str]]:
    """The cells of each server. One that was not measured says why in its first cell after the name."""
    for name, peer in PEERS.items():
        own = [row for row in rows if row["peer"] == name]
        whole = [row for row in own if row["loads"]]
        if not own:
            continue
        if not whole:
            note = own[-1]["note"]
            way_out = f": {INSTALL}" if note.startswith("not installed") else ""
            yield [peer.title, note + way_out, *[""] * (len(counts) + 3)][: len(counts) + 5]
            continue
        loads = [load_cell([row["loads"][str(count)] for row in whole]) for count in counts]
        cells = [
            f"{median(whole, key):.{digits}f}" for key, digits in (("memory_mb", 0), ("start_s", 1), ("add_ms", 0))
        ]
        yield [peer.title, *loads, ratio(rows, name, counts[-1]), *cells]


def load_cell(loads: Sequence[Mapping[str, float]]) -> str:
    """Images per second and percentiles."""
    rate, p50, p99 = (float(np.median([load[key] for load in loads])) for key in ("rate", "p50", "p99"))
    return f"{rate:.1f} ({p50:.0f}, {p99:.0f})"


def median(rows: Sequence[Row], key: str) -> float:
    """The median of a figure over the rounds."""
    return float(np.median([row[key] for row in rows]))


def ratio(rows: Sequence[Row], name: str, count: int) -> str:
    """Our images per second over a server's: the median, and the smallest and the largest of the rounds."""
    rates = {
        peer: [row["loads"][str(count)]["rate"] for row in rows if row["peer"] == peer and row["loads"]]
        for peer in (OURS, name)
    }
    ratios = [ours / other for ours, other in zip(rates[OURS], rates[name], strict=False)]
    if name == OURS or not ratios:
        return ""
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def wrong_line(rows: Sequence[Row]) -> list[str]:
    """How many answers were wrong, if any were."""
    found = {
        PEERS[row["peer"]].title: sum(load["wrong"] for load in row["loads"].values()) for row in rows if row["loads"]
    }
    answers = sum(load["answers"] for row in rows for load in row["loads"].values())
    wrong = ", ".join(f"{count} of {name}" for name, count in found.items() if count)
    return [f"Wrong answers: {wrong or 'none'}, of {answers}."] if answers else []
