"""What tracing costs a request: `python -m benchmarks.tracing`; about 2 minutes on two quiet cores.

Several services answer the same requests on the embedded backbone, in turns of a random order: one without tracing, the
same once more as a control, and two that send 1 % and all of their traces to a collector of this process. With
`--before FOLDER` another one runs the code of another checkout, such as the commit before tracing. One request is in
flight at a time, so its time is all of the service's. CPU time is that of the service's worker, which other load on the
machine changes less.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tyro

from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.intervals import ratio_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from tests.support.load import Ask, classify, closed
from tests.support.otlp import collecting
from tests.support.service import HERE, Installation, Server, serve
from tests.support.tasks import TaskMaker

TASK = "birds"

SAMPLED = {
    "traces, 1 % sampled": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "traces, all sampled": {"OTEL_TRACES_SAMPLER": "always_on"},
}


@dataclass(frozen=True)
class Config:
    """Measure what tracing costs."""

    before: Path | None = None
    """A checkout whose service is measured too."""
    rounds: int = 20
    requests: int = 300
    """Requests of a service in one round."""
    note: str = ""
    """A sentence for the report, such as that the machine was busy."""
    out: Path = Path("benchmarks/results/tracing.md")
    """The table to write."""


@dataclass
class Side:
    """A service, and what was measured of it: one value per round."""

    server: Server
    milliseconds: list[float] = field(default_factory=list)
    """The median of the requests' times."""
    cpu: list[float] = field(default_factory=list)
    """CPU milliseconds per request."""

    def measure(self, asks: list[Ask]) -> None:
        """Send all requests, one after the other."""
        before = self.cpu_seconds()
        replies = asyncio.run(closed(self.server.address, asks, in_flight=1))
        assert {reply.status for reply in replies} == {200}
        self.milliseconds.append(1000 * float(np.median([reply.seconds for reply in replies])))
        self.cpu.append(1000 * (self.cpu_seconds() - before) / len(asks))

    def cpu_seconds(self) -> float:
        """The CPU seconds that its workers have taken so far."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.server.workers())


@contextmanager
def sides(config: Config, maker: TaskMaker, folder: Path) -> Iterator[dict[str, Side]]:
    """The services, each with its name."""
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())

        def start(name: str, given: Mapping[str, str], place: Installation = HERE) -> Side:
            own = folder / name.replace(" ", "-")
            own.mkdir()
            with patch.dict(os.environ, given):
                server = stack.enter_context(serve(maker.root, own, place, threads=1, precision="fp32"))
                server.wait_until("ready")
            return Side(server)

        found = {"no traces": start("no traces", {}), "no traces, once more": start("once more", {})}
        for name, sampler in SAMPLED.items():
            found[name] = start(name, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, **sampler})
        if config.before:
            found["the code before"] = start("before", {}, replace(HERE, cwd=config.before))
        yield found


def report(config: Config, found: Mapping[str, Side]) -> str:
    """The table, with ratios to the service without traces."""
    base = found["no traces"]
    rows = []
    for name, side in found.items():
        cells = [name]
        for own, others in ((side.milliseconds, base.milliseconds), (side.cpu, base.cpu)):
            ratio = ratio_interval(np.array(own) / np.array(others))
            shown = "" if side is base else f"{ratio:.3f}"
            cells += [f"{np.median(own):.3f}", shown]
        rows.append(cells)
    head = ("service", "request, ms", "ratio", "CPU of a request, ms", "ratio")
    said = (
        f"Embedded backbone, fp32, one request in flight, {config.rounds} rounds of {config.requests} requests: medians"
        ", and ratios to the service without traces with 95 % intervals over paired rounds."
    )
    parts = ["# Tracing", provenance("benchmarks.tracing"), said, config.note, table(head, rows, "lrrrr")]
    return "\n\n".join(filter(None, parts))


@command
def main() -> None:
    """Measure, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.tracing")
    order = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        maker = TaskMaker(folder / "store")
        maker.store(maker.make(TASK))
        asks = [classify(TASK, i % 16, maker.images[i % 16]) for i in range(config.requests)]
        with sides(config, maker, folder) as found:
            for turn in range(config.rounds + 1):
                for i in order.permutation(len(found)):
                    [*found.values()][i].measure(asks)
                if turn == 0:
                    # The first round warms up.
                    for side in found.values():
                        side.milliseconds.clear()
                        side.cpu.clear()
    text = report(config, found)
    write_text(config.out, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
