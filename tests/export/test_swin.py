"""A Swin goes the way of the command line, from tuning to every file of an export, and answers as float64 torch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.convert import convert
from export.export import export
from export.options import ConvertConfig, ExportConfig, FileOptions
from export.trace import node_types, trace_plain
from export.traceable import traceable
from mosa_deploy.adapters.probe import plain_backbone
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import BackboneError
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from tests.support import swin
from tests.support.images import write_jpegs
from tests.support.tasks import Traced
from training.config import TuneConfig
from training.tune import tune

METHODS = {"swin-mosa": ("mosa", 3), "swin-dense": ("adapter", 5), "swin-probe": ("linear", None)}

OWN: dict[str, tuple[str, int | None]] = {"swin-full": ("full", None), "swin-biases": ("bitfit", None)}
"""Tasks that tune the backbone itself."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three grey levels by each method."""
    root = tmp_path_factory.mktemp("runs")
    images = write_jpegs(root / "images", dict.fromkeys(("dark", "grey", "light"), 60), size=32)
    for name, (method, bottleneck) in (METHODS | OWN).items():
        tune(
            TuneConfig(
                task="folder",
                name=name,
                data_dir=images,
                backbone=swin.NAME,
                random_weights=True,
                method=method,
                bottleneck=bottleneck,
                epochs=1,
                lr={"linear": None, "full": 5e-3}.get(method, 5e-2),
                out=root / name,
                device="cpu",
            )
        )
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, traced_store: Traced, runs: Path) -> Path:
    """Their store; the first has files of every precision."""
    store = Path(shutil.copytree(traced_store(swin.NAME), tmp_path_factory.mktemp("swin") / "store"))
    for name in METHODS | OWN:
        precision = "fp32,fp16,int8" if name == "swin-mosa" else "fp32"
        export(ExportConfig(bundle=runs / name, out=store, files=FileOptions(precision=precision)))
    return store


def backbone(root: Path) -> Path:
    (folder,) = root.glob("backbones/*")
    return folder


def noise(batch: int) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)


@torch.inference_mode()
def reference(model: Transformer, images: Array, features: bool = False) -> Array:
    """Logits, or what the head reads, in float64."""
    model, x = model.double().eval(), torch.from_numpy(images).double()
    return np.asarray(model.forward_head(model.forward_features(x), pre_logits=features).numpy())


@pytest.mark.parametrize("task", METHODS | OWN)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_folded_graph_answers_as_the_tuned_model_does(runs: Path, root: Path, task: str, batch: int) -> None:
    images = noise(batch)
    wanted = reference(plain_backbone(restore(Bundle.load(runs / task))), images)
    given = OnnxRunner(root / "tasks" / task / "folded.onnx").run(images)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("task", ["swin-mosa", *OWN])
def test_tuning_changes_the_logits_and_adds_no_node(runs: Path, root: Path, task: str) -> None:
    bundle = Bundle.load(runs / task)
    bare = load_backbone(swin.NAME, Weights("random"), len(bundle.record.classes))
    bare.get_classifier().load_state_dict(
        {part: torch.from_numpy(bundle.tensors[f"head.fc.{part}"]) for part in ("weight", "bias")}
    )
    folded = root / "tasks" / task / "folded.onnx"
    without = reference(bare, noise(3))
    assert np.abs(OnnxRunner(folded).run(noise(3)) - without).max() > 1e-2 * np.abs(without).max()
    assert node_types(folded) == node_types(backbone(root) / "plain.onnx")


def test_a_mixed_batch_of_the_shared_graph_answers_each_sample_by_its_own_task(runs: Path, root: Path) -> None:
    bundles = [Bundle.load(runs / name) for name in METHODS]
    bank = Bank(layout_of(bundles[0].record), bottleneck=1)
    rows = [adapter_weights(bundle) for bundle in bundles]
    slots = [bank.write(each) for each in rows]
    assert [rows[0][f"layers.{i}.blocks.1.down"].shape for i in (0, 1)] == [(16, 3), (32, 3)]
    images, order = noise(5), [1, 0, 2, 0, 1]
    runner = SharedRunner(open_runner(backbone(root) / "shared.onnx"), bank)
    given = runner.run(images, np.array([slots[k] for k in order]))
    wanted = [reference(plain_backbone(restore(bundle)), images, features=True) for bundle in bundles]
    for i, k in enumerate(order):
        np.testing.assert_allclose(given[i], wanted[k][i], rtol=0, atol=1e-5 * np.abs(wanted[k][i]).max())
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2


def test_every_parameter_is_found_by_timms_name_but_for_the_bias_tables(root: Path) -> None:
    found = json.loads((backbone(root) / "graph.json").read_text())
    names = set(load_backbone(swin.NAME, Weights("random"), 10).state_dict())
    tables = {name for name in names if name.endswith("_table")}
    assert len(tables) == 4
    assert set(found["parameters"]) == names - tables | {name.removesuffix("_table") for name in tables}
    assert (found["depth"], found["embed_dim"], found["stages"]) == (4, 16, [2, 2])


def test_the_biases_are_gathered_in_a_copy_and_the_model_keeps_its_tables() -> None:
    model = load_backbone(swin.NAME, Weights("random"), 3)
    before = set(model.state_dict())
    copied = set(traceable(model).state_dict())
    assert set(model.state_dict()) == before
    assert {name.removesuffix("_table") for name in before} == copied


def test_a_parameter_that_the_graph_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.trace.traceable", lambda model: model)
    with pytest.raises(BackboneError, match=r"^the graph does not hold layers\..*relative_position_bias_table"):
        trace_plain(load_backbone(swin.NAME, Weights("random"), 3), "0" * 64)


@pytest.mark.parametrize("task", METHODS | OWN)
def test_every_stage_of_an_export_agrees(root: Path, task: str) -> None:
    links = json.loads((root / "tasks" / task / "parity.json").read_text())["links"]
    chain = ["canary", "expectation", "merged", "folded", "folded ONNX"]
    chain += [] if task in OWN else ["shared ONNX"]
    fp32 = [link for link in links if link["second"] in chain]
    assert [fp32[0]["first"], *(link["second"] for link in fp32)] == chain
    assert all(link["max_error"] <= 1e-5 for link in fp32)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("int8", 0.15)])
@pytest.mark.parametrize("batch", [1, 3])
def test_fewer_bits_stay_near_the_tuned_model(
    runs: Path, root: Path, precision: str, tolerance: float, batch: int
) -> None:
    images = noise(batch)
    wanted = reference(plain_backbone(restore(Bundle.load(runs / "swin-mosa"))), images)
    given = OnnxRunner(root / "tasks" / "swin-mosa" / f"folded.{precision}.onnx").run(images)
    assert 0 < np.abs(given - wanted).max() <= tolerance * np.abs(wanted).max()


def test_low_rank_is_refused_before_any_image_is_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TuneConfig(task="digits", backbone=swin.NAME, random_weights=True, method="lora", out=tmp_path / "run")
    with pytest.raises(BackboneError, match=r"^low-rank adapters: a Swin takes"):
        tune(config)
    assert not (tmp_path / "run").exists()
    assert not capsys.readouterr().out


def test_a_checkpoint_from_elsewhere_is_refused(tmp_path: Path) -> None:
    torch.save(swin.swin_for_tests().state_dict(), tmp_path / "x.pth")
    config = ConvertConfig(
        source="timm", path=tmp_path / "x.pth", name="x", backbone=swin.NAME, random_weights=True, out=tmp_path / "run"
    )
    with pytest.raises(BackboneError, match=f"^--backbone {swin.NAME}: only tasks of ViTs can be brought"):
        convert(config)
