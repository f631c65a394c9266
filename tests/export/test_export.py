import hashlib
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.export import export
from export.options import ExportConfig
from export.trace import node_types
from mosa_deploy.adapters.attach import load_task_state, split_layers, task_state
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, AdapterConfig, BackboneMethod, Style
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import read_samples
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.bundles.store_layout import PLAIN
from mosa_deploy.errors import BackboneError, BundleError, ConfigError, DataError, ParityError, ProviderError
from tests.support.files import files_of
from tests.support.runs import BACKBONE, make_run
from tests.support.walker import ROOT

TASK_FILES = {"adapter.json", "adapter.safetensors", "folded.onnx", "parity.json", "export.json"}
TUNED_FILES = TASK_FILES | {"validation.zip"}
"""A run that tuned has kept validation images."""


@pytest.fixture
def copied(tmp_path: Path, parts_store: Path) -> Path:
    """A store of one's own."""
    return Path(shutil.copytree(parts_store, tmp_path / "store"))


def test_the_store_holds_the_backbone_once_and_six_files_a_task(store: Path, digits_run: Path) -> None:
    sha256 = Bundle.load(digits_run).record.backbone.sha256
    tasks = {f"tasks/{task}/{name}" for task in ("digits", "sprites-location") for name in TUNED_FILES}
    backbone = f"backbones/vit_tinyd6_patch4_32.cifar10-{sha256[:8]}"
    shared = {f"{backbone}/{name}" for name in ("plain.onnx", "shared.onnx", "graph.json")}
    assert set(files_of(store)) == {*shared, *tasks}


def test_the_validation_images_of_the_run_travel_with_the_task(store: Path, digits_run: Path) -> None:
    kept, exported = read_samples(digits_run, (32, 32)), Archive.of(store / "tasks" / "digits")
    assert kept is not None
    read = [exported.bundle().record.preprocess.unresized.read(image.content) for image in exported.validation]
    np.testing.assert_array_equal(read, kept.validation)
    assert [int(*image.labels) for image in exported.validation] == kept.labels.tolist()


def test_the_stored_bundle_is_the_expectation_over_the_experts(parts_run: Path, parts_store: Path) -> None:
    split, merged = Bundle.load(parts_run), Bundle.load(parts_store / "tasks" / "parts")
    assert (split.record.form, merged.record.form) == ("split", "merged")
    for i in range(8):
        for layer in (f"blocks.{i}.adapter.down", f"blocks.{i}.adapter.up"):
            base, delta, bias = (
                split.tensors[f"{layer}.{name}"].astype(np.float64) for name in ("base", "weight", "bias")
            )
            found = [merged.tensors[f"{layer}.{name}"].astype(np.float64) for name in ("weight", "bias")]
            np.testing.assert_allclose(found[0], base + delta / 3, atol=1e-6)
            np.testing.assert_allclose(found[1], bias.mean(axis=0), atol=1e-6)
    assert not [name for name in merged.tensors if name.endswith((".owner", ".base"))]


def test_merging_keeps_the_record_but_for_form_and_digest(parts_run: Path, parts_store: Path) -> None:
    before = json.loads((parts_run / "adapter.json").read_text())
    after = json.loads((parts_store / "tasks" / "parts" / "adapter.json").read_text())
    assert {name for name in before if before[name] != after[name]} == {"form", "sha256"}


@pytest.mark.parametrize("task", ["digits", "sprites-location"])
def test_parity_links_every_stage_and_names_the_files_that_it_holds_for(store: Path, task: str) -> None:
    folder = store / "tasks" / task
    report = json.loads((folder / "parity.json").read_text())
    stages = ["canary", "expectation", "merged", "folded", "folded ONNX", "shared ONNX"]
    assert [(link["first"], link["second"]) for link in report["links"]] == list(pairwise(stages))
    assert all(link["max_error"] <= link["tolerance"]["max_error"] == 1e-4 for link in report["links"])
    assert all(link["tolerance"]["reason"] for link in report["links"])
    assert all(link["top1_agreement"] == 1 for link in report["links"])
    assert (report["canary_images"], report["validation_images"], report["other_images"]) == (8, 24, 0)
    assert report["accuracy_images"] == {"digits": 256, "sprites-location": 200}[task]
    found = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("adapter.safetensors", "folded.onnx")
    ]
    assert [report["bundle"], report["folded_sha256"]] == found


def test_a_low_rank_task_joins_the_store_with_a_shared_graph_of_its_own(copied: Path, tmp_path: Path) -> None:
    low_rank = AdapterConfig(bottleneck=4, experts=3, style="low-rank", targets=("q", "v"))
    make_run(tmp_path / "run", adapter=low_rank, name="screws")
    before = files_of(copied)
    folder = export(ExportConfig(bundle=tmp_path / "run", out=copied))
    report = json.loads((folder / "parity.json").read_text())
    assert report["links"][-1]["second"] == "shared ONNX"
    assert (report["canary_images"], report["validation_images"], report["other_images"]) == (3, 0, 0)
    found = files_of(copied)
    (backbone,) = (copied / "backbones").iterdir()
    assert {name.rpartition("/")[2] for name in found.keys() - before.keys()} == {"shared-qkv.onnx", *TASK_FILES}
    changed = {name for name in before if found[name] != before[name]}
    assert changed == {f"backbones/{backbone.name}/graph.json"}
    assert node_types(folder / "folded.onnx") == node_types(backbone / PLAIN)
    assert (folder / "folded.onnx").stat().st_size < (copied / "tasks" / "parts" / "folded.onnx").stat().st_size


@pytest.mark.parametrize(("style", "more"), [("pfeiffer", 8), ("houlsby", 16)])
def test_sequential_adapters_are_exported_with_nodes_of_their_own(
    parts_store: Path, tmp_path: Path, style: Style, more: int
) -> None:
    make_run(tmp_path / "run", adapter=AdapterConfig(bottleneck=4, experts=3, scale=1.0, share="none", style=style))
    folder = export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store"))
    assert set(files_of(folder)) == TASK_FILES - {"folded.onnx"} | {"unfolded.onnx"}
    report = json.loads((folder / "parity.json").read_text())
    assert [link["second"] for link in report["links"]] == ["expectation", "merged", "unfolded ONNX"]
    assert report["unfolded_sha256"] == hashlib.sha256((folder / "unfolded.onnx").read_bytes()).hexdigest()
    assert Bundle.load(folder).record.form == "merged"
    (plain,) = (parts_store / "backbones").glob(f"*/{PLAIN}")
    products = [node_types(path)["MatMul"] for path in (plain, folder / "unfolded.onnx")]
    assert products[1] - products[0] == 2 * more


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_a_backbone_that_was_tuned_itself_is_exported_folded_alone(
    copied: Path, tmp_path: Path, parts_run: Path, method: BackboneMethod
) -> None:
    bundle = Bundle.load(parts_run)
    model = load_backbone(BACKBONE, Weights("random"), 3)
    other = load_backbone(BACKBONE, Weights("random"), 3)
    randomise(other, seed=5)
    load_task_state(model, task_state(other, method), method)
    record = bundle.record.model_copy(update={"task": "own", "method": method, "form": "merged", "adapter": None})

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), record.temperature)

    canary = Canary.record(bundle.canary.images, record.preprocess, answer)
    tensors = {name: value.detach().numpy() for name, value in task_state(model, method).items()}
    saved = Bundle(record, tensors, canary).save(tmp_path / "run")
    folder = export(ExportConfig(bundle=tmp_path / "run", out=copied))
    report = json.loads((folder / "parity.json").read_text())
    assert [link["second"] for link in report["links"]] == ["expectation", "merged", "folded", "folded ONNX"]
    assert set(files_of(folder)) == TASK_FILES
    assert Bundle.load(folder).digest == saved.digest
    (plain,) = (copied / "backbones").glob(f"*/{PLAIN}")
    assert node_types(folder / "folded.onnx") == node_types(plain)


def test_other_runners_must_answer_alike(parts_run: Path, tmp_path: Path, parts_store: Path) -> None:
    pytest.importorskip("openvino")
    store = Path(shutil.copytree(parts_store, tmp_path / "store"))
    folder = export(ExportConfig(bundle=parts_run, out=store, runners=("openvino",)))
    links = {link["second"]: link for link in json.loads((folder / "parity.json").read_text())["links"]}
    for lane in ("folded", "shared"):
        link = links[f"{lane} by openvino"]
        assert link["first"] == f"{lane} ONNX"
        assert 0 < link["max_error"] <= 1e-4


def test_a_runner_that_is_not_here_stops_the_export_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^unknown runner 'openwine'; did you mean openvino"):
        ExportConfig(bundle=tmp_path / "nowhere", runners=("openwine",))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProviderError, match=r"^OpenVINO is not installed: pip install"):
        export(ExportConfig(bundle=tmp_path / "nowhere", runners=("openvino",)))


def test_a_second_export_replaces_the_task_and_leaves_the_backbone(copied: Path, tmp_path: Path) -> None:
    task, (plain,) = copied / "tasks" / "parts", (copied / "backbones").glob(f"*/{PLAIN}")
    before, traced = files_of(task), plain.stat()
    (task / "stale.engine").write_bytes(b"of the task's last weights")
    bundle = make_run(tmp_path / "run")
    moved = Bundle(bundle.record.model_copy(update={"classes": ("a", "b", "c")}), bundle.tensors, bundle.canary)
    moved.save(tmp_path / "run")
    assert export(ExportConfig(bundle=tmp_path / "run", out=copied, new_classes=True)) == task
    assert (plain.stat().st_mtime_ns, plain.stat().st_ino) == (traced.st_mtime_ns, traced.st_ino)
    assert Bundle.load(task).record.classes == ("a", "b", "c")
    assert set(files_of(task)) == TASK_FILES
    assert files_of(task)["adapter.json"] != before["adapter.json"]
    assert [path.name for path in (copied / "tasks").iterdir()] == ["parts"]


def test_broken_parity_names_both_stages_and_leaves_the_store_as_it_was(
    copied: Path, tmp_path: Path, parts_run: Path
) -> None:
    before, bundle = files_of(copied), Bundle.load(parts_run)
    wrong = bundle.canary.probabilities[:, ::-1].copy()
    Bundle(bundle.record, bundle.tensors, Canary(bundle.canary.images, wrong)).save(tmp_path / "run")
    with pytest.raises(ParityError, match=r"^'parts': canary and expectation differ .* the store keeps what it had\."):
        export(ExportConfig(bundle=tmp_path / "run", out=copied))
    assert files_of(copied) == before
    assert [path.name for path in (copied / "tasks").iterdir()] == ["parts"]


def test_a_canary_of_another_class_count_is_broken_parity(tmp_path: Path, parts_run: Path) -> None:
    bundle = Bundle.load(parts_run)
    canary = Canary(bundle.canary.images, bundle.canary.probabilities[:, :2].copy())
    Bundle(bundle.record, bundle.tensors, canary).save(tmp_path / "run")
    with pytest.raises(ParityError, match=r"canary and expectation differ by inf"):
        export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store"))
    assert files_of(tmp_path / "store") == {}


def test_a_bundle_of_other_weights_is_refused(tmp_path: Path, parts_run: Path) -> None:
    bundle = Bundle.load(parts_run)
    other = bundle.record.backbone.model_copy(update={"sha256": "0" * 64})
    Bundle(bundle.record.model_copy(update={"backbone": other}), bundle.tensors, bundle.canary).save(tmp_path / "run")
    with pytest.raises(BackboneError, match=rf"^'parts' was tuned on {BACKBONE}-00000000, .*--backbone-weights"):
        export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_task_of_a_weights_file_is_exported_with_that_file_only(tmp_path: Path) -> None:
    model = load_backbone(BACKBONE, Weights("random"))
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    file = tmp_path / "own.safetensors"
    save_file(model.state_dict(), file)
    make_run(tmp_path / "run", Weights("file", file))
    with pytest.raises(BackboneError, match=r"weights from a file: give it again with --backbone-weights"):
        export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store"))
    folder = export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store", backbone_weights=file))
    assert set(files_of(folder)) == TASK_FILES


def test_a_missing_bundle_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"nowhere/adapter\.json: No such file .* adapter\.safetensors with"
    ) as caught:
        export(ExportConfig(bundle=tmp_path / "nowhere", out=tmp_path / "store"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_an_empty_calibration_file_stops_the_export_before_anything_is_written(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "calibration.npz").touch()
    with pytest.raises(DataError, match=r"run/calibration\.npz cannot be read \(EOFError\): remove it, or"):
        export(ExportConfig(bundle=tmp_path / "run", out=tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_fewer_than_no_parity_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--parity-images -1: at least 0$"):
        ExportConfig(bundle=Path("runs/x"), parity_images=-1)


def test_the_command_line_refuses_an_altered_bundle_in_one_line(tmp_path: Path, parts_run: Path) -> None:
    run = shutil.copytree(parts_run, tmp_path / "run")
    content = bytearray((run / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "adapter.safetensors").write_bytes(content)
    command = [sys.executable, "-m", "export", "--bundle", str(run), "--out", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {run}/adapter.safetensors was altered or cut short since it was saved: " + (
        "copy the bundle again\n"
    )
    assert not (tmp_path / "store").exists()


def test_exporting_a_merged_bundle_in_place_gives_the_same_bundle(copied: Path) -> None:
    merged = copied / "tasks" / "parts"
    before = files_of(merged)
    assert not split_layers(restore(Bundle.load(merged)))
    export(ExportConfig(bundle=merged, out=copied))
    changed = {name for name in TASK_FILES if files_of(merged)[name] != before[name]}
    assert changed <= {"folded.onnx", "parity.json", "export.json"}
