"""Measure what adapters cost on a GPU, in under 9 minutes: `python -m benchmarks.gpu`.

Most of it needs only torch and timm; if PEFT is installed, its mixed batch is timed too. The modes `files` and
`service` need what an export and the service need. All variants of a mode and batch size run in turn, in a new random
order each round. Ratios are computed per round; the table has their
median with a 95 % bootstrap interval. As a control, a copy of the plain model is compared with the plain model. If a
variant fails, its row gives the reason; if the time runs out, it says `not measured`. The files are written again after
every mode and batch size.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_files import Exported
from benchmarks.gpu_models import Variant, inference_variants, training_steps
from benchmarks.gpu_plan import SHARES, Cell, Config, parse, plan
from benchmarks.gpu_report import NOT_MEASURED, Row, heading, tables, write
from benchmarks.gpu_timing import (
    COMPILE,
    EAGER,
    FILES,
    GRAPHS,
    SERVICE,
    TRAINING,
    Call,
    DeadlineError,
    check,
    headline,
    interleave,
    peak_mib,
    prepare,
    to_device,
)
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.errors import command
from mosa_deploy.utils.intervals import median_interval


class Bench:
    """The models of one benchmark, and the deadline for measuring them."""

    def __init__(self, config: Config, deadline: float) -> None:
        """`deadline` is in seconds of `time.perf_counter`."""
        self.config, self.deadline = config, deadline
        depth: dict[str, Any] = {} if config.depth is None else {"depth": config.depth}
        self.backbone = load_backbone(config.backbone, Weights("random"), **depth)
        self.variants: dict[str, Variant] = {}
        self.flops: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.slowest: dict[str, float] = {}
        self.exported = Exported(config.backbone, config.bottleneck, config.device)

    def build(self) -> None:
        """Make every variant in bf16 on the device. If one cannot be made, its error is recorded."""
        for name, make in inference_variants(self.backbone, self.config.bottleneck).items():
            try:
                self.variants[name] = make()
            except Exception as error:
                self.faults[name] = headline(error)
        for name, variant in self.variants.items():
            variant.model.to(self.config.device, torch.bfloat16)
            try:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    self.eager(variant, 1)()
                self.flops[name] = float(counter.get_total_flops())
            except Exception as error:
                self.faults[name] = headline(error)

    def eager(self, variant: Variant, batch: int) -> partial[Tensor]:
        """The model, with images and arguments that lie on the device."""
        generator = torch.Generator().manual_seed(batch)
        size = image_size(self.backbone)
        images = torch.randn(batch, 3, *size, generator=generator).to(self.config.device, torch.bfloat16)
        arguments = {name: to_device(value, self.config.device) for name, value in variant.arguments(batch).items()}
        return partial(variant.model, images, **arguments)

    def measure(self, cell: Cell, rows: dict[str, Row], until: float) -> None:
        """Fill in the rows of a cell, timed until `until`.

        Raises:
            DeadlineError: the deadline comes before there are enough rounds.
        """
        training, reference = cell.mode == TRAINING, cell.variants[0]
        with torch.inference_mode(not training):
            calls = self.calls(cell, rows)
            if reference not in calls:
                return
            if self.config.seconds is not None:
                until = time.perf_counter() + self.config.seconds
            times = interleave(calls, until, self.deadline, self.synchronise)
        for name, values in times.items():
            row = rows[name]
            row.note = row.note.removeprefix(NOT_MEASURED)
            row.rounds, row.ms = len(values), 1000 * float(np.median(values)) * cell.batch / cell.images
            row.images_per_second = 1000 * cell.batch / row.ms
            row.ratio, row.ratio_low, row.ratio_high = median_interval(values / times[reference])
            if cell.mode in (EAGER, GRAPHS, COMPILE):
                row.flop_ratio = self.flops[name] / self.flops[reference]
        if training and self.config.device == "cuda":
            memory = {name: peak_mib(call) for name, call in calls.items()}
            for name, held in memory.items():
                rows[name].memory_mib, rows[name].memory_ratio = held, held / memory[reference]

    def calls(self, cell: Cell, rows: dict[str, Row]) -> dict[str, Call]:
        """Name -> what is timed; in inference a variant that fails is missing, and its row says why."""
        if cell.mode == TRAINING:
            return self.training_calls(cell)
        if cell.mode in (FILES, SERVICE):
            if time.perf_counter() > self.deadline:
                raise DeadlineError
            files = self.exported
            return files.calls(cell.batch, cell.variants) if cell.mode == FILES else files.loads(cell.batch)
        return self.inference_calls(cell, rows)

    def training_calls(self, cell: Cell) -> dict[str, Call]:
        """The training steps, each on its own backbone."""
        config = self.config
        return dict(training_steps(self.backbone, config.training_bottleneck, cell.batch, config.device))

    def inference_calls(self, cell: Cell, rows: dict[str, Row]) -> dict[str, Call]:
        """The calls of all variants, prepared and checked. If one fails or comes too late, its row says so."""
        if not self.variants:
            self.build()
        torch.compiler.reset()
        calls: dict[str, Call] = {}
        for name in cell.variants:
            # Skip it if it would finish too late when as slow as the slowest one so far.
            if time.perf_counter() + self.slowest.get(cell.mode, 0) > self.deadline:
                break
            if name in self.faults:
                rows[name].note = self.faults[name]
                continue
            start = time.perf_counter()
            try:
                eager = self.eager(self.variants[name], cell.batch)
                answer = eager()
                self.synchronise()
                start = time.perf_counter()
                call, remark = prepare(cell.mode, eager, self.config.compile_backend)
                check(call(), answer)
                self.synchronise()
            except Exception as error:
                rows[name].note = headline(error)
            else:
                calls[name] = call
                rows[name].ready_s = time.perf_counter() - start
                rows[name].note += remark
            self.slowest[cell.mode] = max(self.slowest.get(cell.mode, 0), time.perf_counter() - start)
        return calls

    def synchronise(self) -> None:
        """Wait until the device has finished."""
        if self.config.device == "cuda":
            torch.cuda.synchronize()


def carry_out(config: Config) -> list[Row]:
    """Measure the cells one after the other, each in its share of the remaining time; write the files after each."""
    deadline = time.perf_counter() + 60 * config.minutes
    cells = plan(config)
    rows = [{name: Row(cell.mode, cell.batch, name) for name in cell.variants} for cell in cells]
    head = heading(config.device, config.commit)
    what = f"{config.backbone}, r = {config.bottleneck}; training: r = {config.training_bottleneck}"

    def keep() -> list[Row]:
        found = [row for part in rows for row in part.values()]
        write(config.out, f"Adapters on {config.device}: {what}", head, found)
        return found

    keep()
    bench = Bench(config, deadline)
    with closing(bench.exported):
        measure_all(bench, cells, rows, keep)
    return keep()


def measure_all(bench: Bench, cells: list[Cell], rows: list[dict[str, Row]], keep: Callable[[], object]) -> None:
    """Measure the cells in their order; `keep` writes the files."""
    for i, cell in enumerate(cells):
        now = time.perf_counter()
        share = SHARES[cell.mode] / sum(SHARES[later.mode] for later in cells[i:])
        print(f"{cell.mode}, batch {cell.batch}", flush=True)
        try:
            bench.measure(cell, rows[i], now + share * (bench.deadline - now))
        except DeadlineError:
            print(f"{cell.mode}, batch {cell.batch}: {NOT_MEASURED}, the time is up", flush=True)
        except Exception as error:
            for row in rows[i].values():
                row.note = headline(error)
        keep()


@command
def main() -> None:
    """Measure, print and write the tables."""
    config = parse(sys.argv[1:])
    print(tables(carry_out(config)))
    print(f"written to {config.out}")


if __name__ == "__main__":
    main()
