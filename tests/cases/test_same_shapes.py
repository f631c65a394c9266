"""SSF, RepAdapter and MoSA in its place go the whole way: tuned, exported in int8 too, and answered by either lane."""

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.export import export
from export.latency import subject
from export.options import ExportConfig, FileOptions, LatencyConfig
from export.trace import node_types
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError
from tests.support.runs import Few
from training import tasks
from training.config import TuneConfig
from training.tune import tune

METHODS: dict[str, dict[str, Any]] = {
    "ssf": {"method": "ssf"},
    "repadapter": {"method": "repadapter"},
    "mosa": {"method": "mosa", "style": "repadapter"},
}

every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, styled_store: Path) -> Path:
    """A run of a small task by each method, in `runs`, and their store."""
    root = tmp_path_factory.mktemp("same-shapes")
    shutil.copytree(styled_store / "backbones", root / "store" / "backbones")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        for name, options in METHODS.items():
            tune(TuneConfig(task=Few.name, name=name, **options, out=root / "runs" / name, device="cpu"))
            export(ExportConfig(bundle=root / "runs" / name, out=root / "store"))
    return root


def backbone(root: Path) -> Path:
    (folder,) = (root / "store" / "backbones").iterdir()
    return folder


def parameters(path: Path) -> Mapping[str, tuple[int, ...]]:
    """The shape of every weight of a graph but the head's."""
    found = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    return {name: shape for name, shape in found.items() if not name.startswith("head.")}


@every_method
def test_tuning_moves_what_the_task_owns_and_counts_it(root: Path, name: str) -> None:
    record, tensors = (bundle := Bundle.load(root / "runs" / name)).record, bundle.tensors
    assert (record.method, record.form) == (name, "split" if name == "mosa" else "merged")
    width, depth, r, head = 192, 6, 8, 3 * 193
    biases = {"repadapter": width, "mosa": 4 * width}
    wanted = 2 * (11 * depth + 1) * width
    if name != "ssf":
        up = width * r // (2 if name == "repadapter" else 1)
        wanted = 2 * depth * (r * width + r + up + biases[name])
    assert record.metrics["parameters"] == wanted + head
    moved = "scale" if name == "ssf" else "up.weight"
    start = 1.0 if name == "ssf" else 0.0
    tuned = [value.astype(np.float64) for own, value in tensors.items() if own.endswith(f".adapter.{moved}")]
    assert tuned
    assert all(np.abs(value - start).max() > 0 for value in tuned)


@every_method
def test_every_stage_agrees_and_the_folded_graph_has_the_plain_ones_nodes_and_shapes(root: Path, name: str) -> None:
    folder = root / "store" / "tasks" / name
    links = json.loads((folder / "parity.json").read_text())["links"]
    chain = ["canary", "expectation", "merged", "folded", "folded ONNX", "shared ONNX"]
    found = [link for link in links if link["second"] in chain]
    assert [(link["first"], link["second"]) for link in found] == list(pairwise(chain))
    assert all(link["max_error"] <= 1e-5 for link in found)
    plain = backbone(root) / "plain.onnx"
    assert node_types(folder / "folded.onnx") == node_types(plain)
    assert parameters(folder / "folded.onnx") == parameters(plain)


def test_the_tasks_of_a_style_share_a_graph(root: Path, styled_store: Path) -> None:
    files = {path.name for path in backbone(root).glob("*.onnx")}
    assert files == {path.name for path in styled_store.glob("backbones/*/*.onnx")}
    assert files == {"plain.onnx", "shared.onnx", "shared-qkv.onnx", "shared-repadapter.onnx", "shared-ssf.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssf", "repadapter"])
def test_int8_holds_in_both_lanes(root: Path, tmp_path: Path, name: str) -> None:
    store = Path(shutil.copytree(root / "store", tmp_path / "store"))
    files = FileOptions(precision="fp32,int8", max_accuracy_loss=100)
    export(ExportConfig(bundle=root / "runs" / name, out=store, files=files))
    links = json.loads((store / "tasks" / name / "parity.json").read_text())["links"]
    cosines = {link["second"]: link["cosine"] for link in links if "int8" in link["second"]}
    assert {each.split()[0].split(".")[0] for each in cosines} == {"folded", f"shared-{name}"}
    assert all(cosine > 0.98 for cosine in cosines.values())


def test_a_report_of_ssf_tells_no_settings_of_bottlenecks(root: Path) -> None:
    text = (root / "runs" / "ssf" / "report.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["adapter"] == "| adapter | style ssf |"
    assert not [word for word in ("bottleneck", "experts", "scale", "share") if word in lines["recipe"]]
    assert "groups 2" in (root / "runs" / "repadapter" / "report.md").read_text()


def test_a_bundle_is_timed_folded_at_the_multiply_adds_of_the_plain_graph(root: Path) -> None:
    config = LatencyConfig(bundle=root / "runs" / "repadapter")
    given = subject(config)
    assert [*given.tasks] == [0]
    assert given.variants(config) == ["plain", "control", "folded"]
    others = LatencyConfig(bundle=config.bundle, variants=("folded", "shared"))
    with pytest.raises(ConfigError, match=r"^--variants shared: for adapters beside the FFN; this bundle's folds at"):
        given.variants(others)
