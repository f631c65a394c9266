"""The precision of training steps. Validation is always in fp32."""

from collections.abc import Mapping
from typing import Any

import torch

from mosa_deploy.errors import ConfigError

BF16_CPUS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
"""What a CPU has that multiplies in bf16 -> how to call it."""


def cpu_capabilities() -> Mapping[str, Any]:
    """What torch knows of this CPU; nothing in releases of torch that do not ask."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def choose_precision(name: str, device: str, capabilities: Mapping[str, Any] | None = None) -> str:
    """The precision `fp32` or `bf16`; `auto` chooses bf16 on CUDA and on CPUs that multiply in it.

    Raises:
        ConfigError: the precision is unknown.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"--precision {name}: choose auto, fp32 or bf16")
    if name != "auto":
        return name
    return "bf16" if device == "cuda" or bf16_units(capabilities) else "fp32"


def why_precision(name: str, device: str, capabilities: Mapping[str, Any] | None = None) -> str:
    """The precision of steps and who chose it, in words: `steps in bf16 (this CPU has AVX512-BF16)`."""
    chosen = choose_precision(name, device, capabilities)
    if name != "auto" or device == "cuda":
        return f"steps in {chosen}"
    units = " and ".join(bf16_units(capabilities))
    return f"steps in {chosen} ({f'this CPU has {units}' if units else 'this CPU does not multiply in bf16'})"


def bf16_units(capabilities: Mapping[str, Any] | None = None) -> list[str]:
    """What this CPU multiplies in bf16 with; empty if it does not."""
    known = cpu_capabilities() if capabilities is None else capabilities
    return [text for key, text in BF16_CPUS.items() if known.get(key)]
