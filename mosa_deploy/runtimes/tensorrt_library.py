"""TensorRT in either of its two libraries, which share one Python API.

    tensorrt       NVIDIA's, for data centre and desktop: builds for the GPU that it runs on
    tensorrt_rtx   for GeForce RTX and workstations: builds for any capability it knows, without a GPU

Each comes with an extra of its own, and is imported when an engine is built or opened.
"""

import importlib
from importlib.util import find_spec
from typing import Any, Literal, get_args

from mosa_deploy.errors import ProviderError

Library = Literal["tensorrt", "tensorrt_rtx"]

EXTRAS: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}

INSTALL = "pip install 'mosa-deploy[tensorrt-rtx]', or 'mosa-deploy[tensorrt]' for NVIDIA's own"


def installed() -> list[Library]:
    """The libraries that are installed, NVIDIA's own first."""
    found: list[Library] = []
    for name in get_args(Library):
        try:
            there = find_spec(name) is not None
        except ValueError:
            there = False
        found += [name] if there else []
    return found


def load_library(name: Library) -> Any:
    """Import a library.

    Raises:
        ProviderError: it is not installed, or it does not load.
    """
    try:
        return importlib.import_module("tensorrt") if name == "tensorrt" else importlib.import_module("tensorrt_rtx")
    except ImportError:
        raise ProviderError(f"{name} is not installed: pip install 'mosa-deploy[{EXTRAS[name]}]'") from None
    except (OSError, RuntimeError) as error:
        raise ProviderError(f"{name} does not load ({str(error).splitlines()[0]}): install it again") from None
