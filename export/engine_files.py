"""Build the engines of a graph, check them if this machine has their GPU, and keep a record of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.engines import Backend, BankLimits, Request, choose_backend
from export.formats import ENGINE_FORMATS, Written, milliseconds
from export.options import FileOptions
from export.parity import TOLERANCES, Chain
from export.targets import ExportTarget
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.runtimes.cuda import device_capability
from mosa_deploy.runtimes.names import Precision
from mosa_deploy.runtimes.tensorrt import load_engine
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, read_records, write_record
from mosa_deploy.utils.files import replacing, sha256

DEFERRED: Literal["deferred"] = "deferred"


def engine_file(graph: Path, precision: Precision, capability: str) -> Path:
    """The path of the engine built from a graph."""
    return graph.with_suffix(f".{precision}.{capability}.engine")


@dataclass(frozen=True)
class Build:
    """The library that builds engines, and the GPU, batch sizes and bank they are built for."""

    backend: Backend
    capability: str
    batch_sizes: tuple[int, ...]
    """Ascending."""
    bank: BankLimits

    def write(self, target: ExportTarget, precisions: Sequence[Precision], chain: Chain) -> Iterator[Written]:
        """Build and check one engine per precision. An engine built from the same file in the same way is kept.

        A precision whose ONNX file was not written has no engine.

        Raises:
            ProviderError: the library refuses a graph.
            ParityError: an engine that runs here differs too much from the fp32 graph; it is not written.
        """
        for precision in precisions:
            onnx = format_file(target.path, ENGINE_FORMATS[precision])
            if not onnx.is_file():
                continue
            record = self.describe(target, precision)
            path = engine_file(target.path, precision, self.capability)
            kept = read_records(path.parent).get(path.name)
            if kept is not None and path.is_file() and same(kept, record):
                yield prove(target, path, path, kept, chain)
                continue
            request = Request(onnx, precision, self.batch_sizes, self.capability, self.limits(target))
            with replacing(path) as aside:
                aside.write_bytes(self.backend.build(request))
                record = record.model_copy(update={"sha256": sha256(aside)})
                found = prove(target, aside, path, record, chain)
            if found.link is not None:
                record = record.model_copy(update={"parity": found.link.max_error})
            write_record(path, record)
            yield found

    def limits(self, target: ExportTarget) -> BankLimits:
        """The limits asked for, or a larger bottleneck if the task has one."""
        return BankLimits(self.bank.slots, max(self.bank.bottleneck, target.bottleneck))

    def describe(self, target: ExportTarget, precision: Precision) -> EngineRecord:
        """The record of an engine before it is built."""
        onnx, limits = format_file(target.path, ENGINE_FORMATS[precision]), self.limits(target)
        return EngineRecord(
            library=self.backend.library,
            version=self.backend.version,
            precision=precision,
            capability=self.capability,
            batch_sizes=self.batch_sizes,
            bank=(limits.slots, limits.bottleneck) if target.shared else None,
            onnx=onnx.name,
            onnx_sha256=sha256(onnx),
            sha256="",
            parity=DEFERRED,
        )


def choose_build(options: FileOptions, cache: Path) -> Build | None:
    """Choose the library, GPU, batch sizes and bank for engines; None if no engines are asked for.

    Raises:
        ConfigError: the library cannot build for that capability, or the capability must be given.
        ProviderError: the library is not installed.
    """
    if not options.engines:
        return None
    backend = choose_backend(options.engine_backend, cache)
    capability = backend.target(options.compute_capability)
    bank = BankLimits(options.bank_slots, options.bank_bottleneck)
    return Build(backend, capability, tuple(sorted(set(options.batch_sizes))), bank)


def same(kept: EngineRecord, record: EngineRecord) -> bool:
    """Whether two engines were built from the same file in the same way."""
    return kept.model_copy(update={"sha256": "", "parity": DEFERRED}) == record


def prove(target: ExportTarget, file: Path, path: Path, record: EngineRecord, chain: Chain) -> Written:
    """Compare an engine, which will be renamed to `path`, with its fp32 graph, if this machine has its GPU."""
    if device_capability() != record.capability:
        return Written(path, None, None, None)
    scales = read_index(path.parent).scales.get(record.onnx, {}) if target.shared else {}
    scaled, most = target.scaled(chain.bundle, scales), record.batch_sizes[-1]
    answer = scaled.answer_by(load_engine(file, record))
    logits = chain.answers(path.name, answer, most)
    link = chain.branch(chain.compare(target.stage, path.name, logits, TOLERANCES[record.precision]))
    return Written(path, link, chain.accuracy(path.name, answer, most), milliseconds(answer, chain.inputs))
