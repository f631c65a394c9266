"""The machine on which a service measures, and the times that are kept for it."""

import hashlib
import platform
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.store_layout import measured_file
from mosa_deploy.runtimes.cuda import gpu_models
from mosa_deploy.utils.processes import cores
from mosa_deploy.utils.versions import installed_versions

FLAGS = {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "bf16"}
"""The features of a CPU that decide which precision is fast. A model's name may not tell: in virtual machines several
models have one."""

LIBRARIES = ("mosa-deploy", "onnxruntime", "onnxruntime-gpu", "openvino")


class Machine(BaseModel):
    """What times depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    flags: tuple[str, ...]
    cores: int
    threads: int
    """MOSA_THREADS."""
    gpus: tuple[str, ...]
    versions: dict[str, str]

    @classmethod
    def here(cls, threads: int) -> "Machine":
        """This machine."""
        cpu, flags = _processor()
        return cls(
            cpu=cpu,
            flags=flags,
            cores=cores(),
            threads=threads,
            gpus=gpu_models(),
            versions=installed_versions(LIBRARIES),
        )

    @property
    def file(self) -> str:
        """Path of its times below the root of a store."""
        return measured_file(hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16])


class Times(BaseModel):
    """What the candidates of a backbone took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: str
    """The graph that was timed."""
    files: dict[str, str | None]
    """Candidate -> sha256 of its file."""
    milliseconds: dict[str, float]
    """Candidate -> time per image, of those that ran."""


class Timings(BaseModel):
    """`measured/<machine>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What cannot be read is measured again, so no version is migrated.
    format_version: Literal[1] = 1
    machine: Machine
    backbones: dict[str, Times]


def _processor() -> tuple[str, tuple[str, ...]]:
    """The CPU's model, and its features of `FLAGS`."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    parts = [fields[name] for name in ("model name", "cpu family", "model", "stepping") if name in fields]
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return ", ".join(parts) or platform.processor() or platform.machine(), tuple(sorted(FLAGS.intersection(flags)))
