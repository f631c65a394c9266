import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mosa_deploy
from tests.support.walker import ROOT, closure, file_of, imported, imports_of, new_modules

FORBIDDEN = {
    "mosa_deploy": {"training", "export", "serving", "benchmarks", "tests"},
    "training": {"export", "serving", "benchmarks", "tests"},
    "export": {"training", "serving", "benchmarks", "tests"},
    "serving": {"training", "export", "benchmarks", "tests"},
}

BELOW = {
    "utils": set[str](),
    "bundles": {"utils"},
    "graphs": {"bundles", "utils"},
    "runtimes": {"graphs", "bundles", "utils"},
    "client": {"runtimes", "graphs", "bundles", "utils"},
    "backbones": {"bundles", "utils"},
    "adapters": {"backbones", "bundles", "utils"},
    "hub": {"backbones", "bundles", "utils"},
}
"""The packages of `mosa_deploy`, and which of them each may import; all may import `mosa_deploy.errors`."""

HEAVY = {"torch", "timm", "torchvision", "scipy", "sklearn", "matplotlib", "training", "export"}

UNLOADED = {
    "bundles": HEAVY | {"onnx", "onnxruntime"},
    "graphs": HEAVY,
    "runtimes": HEAVY | {"onnx"},
    "client": HEAVY | {"onnx"},
    "hub": HEAVY | {"onnx", "onnxruntime"},
    "utils": HEAVY,
}
"""What no module of a package loads into a fresh process."""


def files_of(room: str) -> set[Path]:
    return set((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_in_the_allowed_direction(room: str) -> None:
    assert files_of(room)
    wrong = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in files_of(room)
        for module in imports_of(path)
        if module.split(".")[0] in FORBIDDEN[room]
    }
    assert not wrong


def packages_of(path: Path) -> set[str]:
    """The packages of `mosa_deploy` that a file imports from."""
    found = {module.split(".")[1] for module in imports_of(path) if module.startswith("mosa_deploy.")}
    return found & BELOW.keys()


def modules_of(package: str) -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(files_of(f"mosa_deploy/{package}"))
    ]


def test_every_package_of_the_library_has_its_place_in_the_order() -> None:
    packages = {path.name for path in (ROOT / "mosa_deploy").iterdir() if (path / "__init__.py").is_file()}
    assert packages == BELOW.keys()


@pytest.mark.parametrize("package", BELOW)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    wrong = {
        f"{path.name}: {other}"
        for path in files_of(f"mosa_deploy/{package}")
        for other in packages_of(path) - BELOW[package] - {package}
    }
    assert not wrong


def test_the_order_of_the_packages_has_no_circle() -> None:
    assert list(TopologicalSorter(BELOW).static_order())


def test_no_module_imports_itself_through_others() -> None:
    files = [path for room in FORBIDDEN for path in files_of(room) if path.name != "__init__.py"]
    imports = {path: {file for name in imports_of(path, loaded=True) if (file := file_of(name))} for path in files}
    assert list(TopologicalSorter({path: found - {path} for path, found in imports.items()}).static_order())


def test_utils_know_nothing_of_ours_but_the_errors() -> None:
    ours = {
        module
        for path in files_of("mosa_deploy/utils")
        for module in imports_of(path)
        if module.split(".")[0] in FORBIDDEN and not module.startswith("mosa_deploy.errors")
    }
    assert ours <= {"mosa_deploy"} | {module for module in ours if module.startswith("mosa_deploy.utils")}


@pytest.mark.parametrize("package", UNLOADED)
def test_a_light_package_loads_nothing_heavy(package: str) -> None:
    loaded = new_modules(f"import {', '.join(modules_of(package))}")
    assert "mosa_deploy" in loaded
    assert not loaded & UNLOADED[package]


def test_tests_share_nothing_but_what_is_in_tests_support() -> None:
    wrong = set()
    for path in files_of("tests"):
        # Tests of the benchmark scripts are the one exception: they import the script that they test.
        rooms = {"tests"} if path.parent == ROOT / "tests" / "benchmarks" else {"tests", "benchmarks"}
        for module in imports_of(path):
            if module.split(".")[0] in rooms and not f"{module}.".startswith("tests.support."):
                wrong.add(f"{path.relative_to(ROOT)}: {module}")
    assert not wrong


def test_the_gpu_benchmarks_need_nothing_of_the_tests() -> None:
    # What times files and the service does, where it is used: tests/benchmarks/test_gpu.py runs the rest without it.
    parts = ("gpu_models", "gpu_report", "gpu_timing", "step")
    files, _ = closure({ROOT / "benchmarks" / f"{name}.py" for name in parts})
    assert not {path for path in files if path.is_relative_to(ROOT / "tests")}


@pytest.mark.parametrize(
    ("room", "extra"), [("training", "train"), ("export", "export"), ("serving", "serve"), ("serving", "serve-cpu")]
)
def test_a_room_and_what_it_loads_of_the_library_need_only_its_own_extra(room: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # These are loaded only when a user names them: `tests/mosa_deploy/runtimes/test_runner.py` sees to it.
    named = [
        line
        for name in ("h5py", "heif", "openvino", "otel", "ray", "score", "tensorrt", "tensorrt-rtx")
        for line in extras[name]
    ]
    lines = [*project["dependencies"], *extras[extra], *named]
    # tensorrt-rtx-cu13's module has no CUDA version in its name.
    declared = {canonicalize_name(Requirement(line).name.removesuffix("-cu13")) for line in lines}
    distributions = packages_distributions()
    _, others = closure(files_of(room))
    undeclared = {
        module
        for module in others - sys.stdlib_module_names
        if not {canonicalize_name(name) for name in (module, *distributions.get(module, ()))} & declared
    }
    assert not undeclared


@pytest.mark.parametrize(
    "source",
    [
        "import training.data",
        "import numpy, training.data as d",
        "from training import data",
        "from training.data import decode_all",
        "def f():\n    class A:\n        def g(self):\n            from training import data",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from training import data",
        "try:\n    import training.data\nexcept ImportError:\n    pass",
        "import importlib\nf = lambda: importlib.import_module('training.data')",
        "from importlib import import_module\nx = import_module('training.data')",
        "x = __import__('training.data')",
    ],
)
def test_the_walker_sees_an_import_wherever_it_stands(source: str) -> None:
    assert any(module.startswith("training") for module in imported(source, "mosa_deploy"))


def test_the_walker_resolves_relative_imports() -> None:
    assert {*imported("from . import base\nfrom .. import data", "training.tasks")} == {
        "training.tasks",
        "training.tasks.base",
        "training",
        "training.data",
    }


@pytest.mark.parametrize(
    "source",
    [
        "import importlib\nimportlib.import_module(name)",
        "__import__('train' + 'ing')",
        "__import__(name=room)",
        "import importlib\nload = importlib.import_module",
        "from importlib import import_module as load",
        "import importlib\nimportlib.import_module('.data', 'training')",
    ],
)
def test_the_walker_refuses_an_import_that_it_cannot_read(source: str) -> None:
    with pytest.raises(ValueError, match=r"line \d: an import"):
        list(imported(source, "mosa_deploy"))


def test_the_walker_follows_imports_through_the_project() -> None:
    files, others = closure({ROOT / "mosa_deploy" / "adapters" / "restore.py"})
    names = {str(path.relative_to(ROOT / "mosa_deploy")) for path in files}
    assert {"adapters/restore.py", "backbones/load.py", "backbones/embedded.py", "errors.py", "__init__.py"} <= names
    assert {"torch", "timm", "safetensors"} <= others


def test_the_service_runs_without_torch_and_without_the_other_rooms() -> None:
    modules = new_modules("import serving.service")
    assert {"bentoml", "fastapi", "onnxruntime", "mosa_deploy"} <= modules
    assert not modules & {"torch", "timm", "onnx", "scipy", "matplotlib", "training", "export"}


def test_the_walker_leaves_out_what_a_package_imports_on_demand() -> None:
    source = "def __getattr__(name):\n    return import_module(name)\nif TYPE_CHECKING:\n    import torch\nimport json"
    assert {*imported(source, "mosa_deploy")} == {"torch", "json"}
    assert {*imported(source, "mosa_deploy", loaded=True)} == {"json"}


@pytest.mark.parametrize("name", mosa_deploy.__all__)
def test_a_public_name_is_what_its_module_says(name: str) -> None:
    found = getattr(mosa_deploy, name)
    assert found.__name__ == name
    assert name in dir(mosa_deploy)


def test_a_name_that_the_library_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'mosa_deploy' has no attribute 'unfold'"):
        _ = mosa_deploy.unfold


def test_the_client_runs_without_the_service_and_without_runtimes() -> None:
    modules = new_modules("import mosa_deploy.client")
    assert {"httpx", "pydantic", "mosa_deploy"} <= modules
    assert not modules & (HEAVY | {"onnx", "onnxruntime", "openvino", "tensorrt", "fastapi", "bentoml", "serving"})


def test_importing_the_library_loads_nothing_but_itself() -> None:
    assert new_modules("import mosa_deploy") - sys.stdlib_module_names == {"mosa_deploy"}
