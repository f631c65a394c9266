"""An OpenVINO of any version that seems to be installed, and computes nothing."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest


def pretend_openvino(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Let `import openvino` find this version."""
    module = types.ModuleType("openvino")
    vars(module).update(__spec__=ModuleSpec("openvino", None), __version__=version)
    monkeypatch.setitem(sys.modules, "openvino", module)
