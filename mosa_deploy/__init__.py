"""One frozen vision transformer, hundreds of tasks, at the latency of the plain backbone.

    from mosa_deploy import AdapterConfig, Predictor, attach, fold, load_backbone, merge, save_bundle, two_pass_loss

The public names are imported when they are first used: `import mosa_deploy` loads neither torch nor ONNX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosa_deploy.adapters.attach import attach
    from mosa_deploy.adapters.fold import fold
    from mosa_deploy.adapters.loss import two_pass_loss
    from mosa_deploy.adapters.merge import merge
    from mosa_deploy.adapters.save import save_bundle
    from mosa_deploy.backbones.load import load_backbone
    from mosa_deploy.bundles.adapter_config import AdapterConfig
    from mosa_deploy.bundles.bundle import Bundle
    from mosa_deploy.client.client import AsyncClient, Client
    from mosa_deploy.client.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "AsyncClient",
    "Bundle",
    "Client",
    "Predictor",
    "attach",
    "fold",
    "load_backbone",
    "merge",
    "save_bundle",
    "two_pass_loss",
]

_MODULES = {
    "AdapterConfig": "mosa_deploy.bundles.adapter_config",
    "AsyncClient": "mosa_deploy.client.client",
    "Bundle": "mosa_deploy.bundles.bundle",
    "Client": "mosa_deploy.client.client",
    "Predictor": "mosa_deploy.client.predictor",
    "attach": "mosa_deploy.adapters.attach",
    "fold": "mosa_deploy.adapters.fold",
    "load_backbone": "mosa_deploy.backbones.load",
    "merge": "mosa_deploy.adapters.merge",
    "save_bundle": "mosa_deploy.adapters.save",
    "two_pass_loss": "mosa_deploy.adapters.loss",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
