"""`engine.json`: the records of the engines in a folder, by file name.

An engine runs only with the version of the library that built it, on a GPU of the capability it was built for.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.bundles.format_version import VERSION_KEY, FileFormat
from mosa_deploy.bundles.store_layout import ENGINES
from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.runtimes.names import Precision
from mosa_deploy.runtimes.tensorrt_library import Library
from mosa_deploy.utils.files import sha256, write_text

PREFERRED: tuple[Precision, ...] = ("fp16", "int8", "fp32")
"""The order in which fitting engines are tried: int8 may cost accuracy, and fp32 is the slowest."""

AGAIN = "build it again with `mosa export --targets onnx,tensorrt`"

ENGINES_FORMAT = FileFormat(ENGINES, StoreError, remedy=AGAIN)


class EngineRecord(BaseModel):
    """What an engine is, what it was built from, and what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    library: Library
    version: str
    """The version of that library."""
    precision: Precision
    capability: Annotated[str, Field(pattern=r"^sm\d+$")]
    batch_sizes: tuple[int, ...]
    """The size of each optimisation profile, ascending."""
    bank: tuple[int, int] | None
    """The most slots and the largest bottleneck of the banks; None for a task's own engine."""
    onnx: str
    """The file that it was built from."""
    onnx_sha256: str
    sha256: str
    parity: float | Literal["deferred"]
    """The largest error on the canary, relative to the fp32 graph's largest logit; deferred if no GPU could run it."""


def read_records(folder: Path) -> dict[str, EngineRecord]:
    """The records in a folder by the engine's file name; none if it has no `engine.json`.

    Raises:
        StoreError: it is damaged, or was written by a newer release.
    """
    path = folder / ENGINES
    try:
        fields = ENGINES_FORMAT.upgrade(json.loads(path.read_bytes()), str(path))
        return {name: EngineRecord.model_validate(record) for name, record in fields["engines"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}): {AGAIN}") from None


def write_record(path: Path, record: EngineRecord) -> None:
    """Add the record of the engine at `path` to those of its folder."""
    records = read_records(path.parent) | {path.name: record}
    engines = {name: records[name].model_dump(mode="json") for name in sorted(records)}
    fields = {VERSION_KEY: ENGINES_FORMAT.newest, "engines": engines}
    write_text(path.parent / ENGINES, json.dumps(fields, indent=2) + "\n")


def read_record(path: Path) -> EngineRecord:
    """The record of the engine at `path`, once its bytes have been compared with it.

    Raises:
        StoreError: the engine or its record is missing, or the engine was altered.
    """
    record = read_records(path.parent).get(path.name)
    if record is None or not path.is_file():
        missing = path.parent / ENGINES if path.is_file() else path
        raise StoreError(f"{missing}: no such engine; {AGAIN}")
    if sha256(path) != record.sha256:
        raise StoreError(f"{path} was altered or cut short since it was built: {AGAIN}")
    return record


def engines_of(folder: Path, graph: str, capability: str) -> list[Path]:
    """A graph's engines for a GPU of that capability, the preferred one first; if it has none, one for another GPU.

    Raises:
        StoreError: the folder's `engine.json` is damaged.
    """
    records = read_records(folder)
    of_graph = [name for name, record in records.items() if record.onnx.split(".")[0] == Path(graph).stem]
    ranked = sorted(of_graph, key=lambda name: PREFERRED.index(records[name].precision))
    here = [name for name in ranked if records[name].capability == capability]
    return [folder / name for name in here or ranked[:1]]


def check_engine(path: Path, record: EngineRecord, version: str, capability: str | None) -> None:
    """Compare an engine with the installed library and this machine's GPU.

    Raises:
        ProviderError: they differ; it names the flag that builds a fitting engine.
    """
    if capability is None:
        raise ProviderError(f"{path} needs an NVIDIA GPU of {record.capability}, which is not here: run its ONNX file")
    if record.capability != capability:
        raise ProviderError(
            f"{path} was built for {record.capability}, this GPU is {capability}: {AGAIN} --compute-capability"
            f" {capability}"
        )
    if record.version != version:
        raise ProviderError(
            f"{path} was built with {record.library} {record.version}, {version} is installed: {AGAIN} --engine-backend"
            f" {record.library}"
        )
