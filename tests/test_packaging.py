import importlib
import json
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.installs import PACKAGES
from tests.support.walker import ROOT, closure

TEXT = (ROOT / "pyproject.toml").read_text()
PYPROJECT = tomllib.loads(TEXT)
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BENTOFILE = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_every_constraint_is_an_exact_pin_and_names_no_host() -> None:
    odd = [line for line in CONSTRAINTS if not re.fullmatch(r"[\w.-]+==\d[\w.+!]*|#[^:]*", line)]
    assert not odd


@pytest.mark.parametrize("extra", ["(base)", *EXTRAS])
def test_the_constraints_pin_every_requirement_to_a_version_that_it_allows(extra: str) -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    requirements = [Requirement(line) for line in EXTRAS.get(extra, PROJECT["dependencies"])]
    assert requirements
    for requirement in requirements:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement.name


def test_the_extras_that_the_documents_name_exist() -> None:
    expected = {
        "train",
        "export",
        "serve",
        "serve-cpu",
        "tensorrt",
        "tensorrt-rtx",
        "openvino",
        "client",
        "docs",
        "dev",
    }
    assert expected <= EXTRAS.keys()


def test_the_base_needs_four_packages() -> None:
    assert names(PROJECT["dependencies"]) == {"numpy", "pillow", "safetensors", "pydantic"}


def test_a_dependency_says_why_where_it_first_appears() -> None:
    section = TEXT[TEXT.index("dependencies = [") : TEXT.index("[tool.")]
    first = dict(reversed(re.findall(r'"([A-Za-z][\w.-]*)(?:\[\w+\])?[><=][^"]*"(.*)', section)))
    assert {canonicalize_name(name) for name in first} == names(
        [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    )
    silent = [name for name, rest in first.items() if not re.search(r"# \S", rest)]
    assert not silent


def test_torch_starts_at_the_oldest_release_that_was_tried() -> None:
    floors = {str(r.specifier) for lines in EXTRAS.values() for r in map(Requirement, lines) if r.name == "torch"}
    assert floors == {">=2.11"}


@pytest.mark.parametrize("extra", ["train", "export", "serve"])
@pytest.mark.parametrize(
    ("system", "machine", "runtime"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_onnxruntime_is_for_gpus_where_there_are_wheels(extra: str, system: str, machine: str, runtime: str) -> None:
    environment = {"sys_platform": system, "platform_machine": machine}
    requirements = [Requirement(line) for line in EXTRAS[extra] if line.startswith("onnxruntime")]
    chosen = [each.name for each in requirements if each.marker is None or each.marker.evaluate(environment)]
    assert chosen == [runtime]


def test_setuptools_finds_every_package() -> None:
    included = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    dotted = {".".join(each.relative_to(ROOT).parts) for each in folders if (each / "__init__.py").is_file()}
    assert len(dotted) == len(folders)
    assert not [name for name in dotted if not any(fnmatchcase(name, pattern) for pattern in included)]


def test_the_bento_is_made_of_the_serving_extra_without_torch() -> None:
    packages = names(BENTOFILE["python"]["packages"])
    assert packages == names([*PROJECT["dependencies"], *EXTRAS["serve-cpu"]])
    assert not packages & {"torch", "torchvision", "timm"}


def test_the_bento_includes_every_file_that_the_service_loads() -> None:
    module, _, name = BENTOFILE["service"].partition(":")
    assert module == "serving.service"
    assert hasattr(importlib.import_module("serving.service"), name)
    files, _ = closure({ROOT / "serving" / "service.py"})
    loaded = {PurePosixPath(path.relative_to(ROOT).as_posix()) for path in files}
    assert {"service.py", "registry.py", "bank.py"} <= {path.name for path in loaded}
    assert not {path for path in loaded if not any(path.match(pattern) for pattern in BENTOFILE["include"])}


def test_the_embedded_weights_are_small_and_in_half_precision() -> None:
    (path,) = (ROOT / "mosa_deploy" / "backbones" / "weights").glob("*.safetensors")
    content = path.read_bytes()
    assert len(content) < 9_000_000
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {value["dtype"] for name, value in header.items() if name != "__metadata__"} == {"F16"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files of the tree are listed by git")
def test_no_file_names_a_folder_of_the_machine_that_wrote_it() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    pattern = re.compile(rb"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+)/")
    assert len(paths) > 50
    assert pattern.search(b'"' + b"/root" + b'/x"')
    assert not [path for path in paths if path.is_file() and pattern.search(path.read_bytes())]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "benchmarks.demo"),
        ("test", "pytest"),
        ("check", "mypy"),
        ("docs", "mkdocs"),
        ("wheel", "uv build"),
        ("setup", ""),
    ],
)
def test_a_target_of_the_makefile_can_be_made(target: str, command: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
    for module in re.findall(r"python -m ([\w.]+)", done.stdout):
        assert find_spec(module) is not None
