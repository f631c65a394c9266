"""From a bundle to every file of it, by the command's own function."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.export import export
from export.formats import Written
from export.options import ExportConfig, FileOptions
from export.overview import overview
from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.task_graph import check_proved
from mosa_deploy.errors import ConfigError, DataError, ParityError, StoreError
from mosa_deploy.utils.files import sha256

FORMATS = ("fp16", "int8", "int8-tensorrt")


def backbone(root: Path) -> Path:
    (folder,) = root.glob("backbones/*")
    return folder


def test_both_lanes_have_every_format_and_the_index_knows_the_shared_ones(format_store: Path) -> None:
    assert {path.name for path in (format_store / "tasks" / "parts").glob("*.onnx")} == {
        "folded.onnx",
        *(f"folded.{name}.onnx" for name in FORMATS),
    }
    shared = {"shared.onnx", *(f"shared.{name}.onnx" for name in FORMATS)}
    files = read_index(backbone(format_store)).files
    assert files.keys() == {"plain.onnx", *shared}
    assert all(sha256(backbone(format_store) / name) == digest for name, digest in files.items())
    assert {path.name for path in backbone(format_store).iterdir()} == {"graph.json", *files}


def test_every_file_is_linked_to_the_fp32_graph_of_its_lane_by_its_own_tolerance(format_store: Path) -> None:
    report = json.loads((format_store / "tasks" / "parts" / "parity.json").read_text())
    links = {link["second"]: link for link in report["links"]}
    for lane in ("folded", "shared"):
        for name in FORMATS:
            link = links[f"{lane}.{name}.onnx"]
            assert link["first"] == f"{lane} ONNX"
            assert 1e-6 < link["max_error"] <= link["tolerance"]["max_error"] > 1e-4
            assert link["cosine"] >= link["tolerance"]["cosine"] >= 0.95
            assert link["tolerance"]["reason"]
    assert links["folded.fp16.onnx"]["tolerance"]["cosine"] == 0.999


def test_the_digest_of_every_file_is_recorded_with_the_bundle(format_store: Path) -> None:
    task = format_store / "tasks" / "parts"
    files = json.loads((task / "parity.json").read_text())["files"]
    assert files.keys() == {
        f"{lane}{name}.onnx" for lane in ("folded", "shared") for name in ("", ".fp16", ".int8", ".int8-tensorrt")
    }
    check_proved(task / "folded.int8.onnx", Bundle.load(task).digest)
    with pytest.raises(StoreError, match=r"folded\.int8\.onnx is not the graph that was proved"):
        check_proved(task / "folded.int8.onnx", "0" * 64)


def test_a_shared_file_serves_the_next_task_as_it_is(format_store: Path, calibrated_run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(format_store, tmp_path / "store"))
    before = {path.name: path.stat().st_ino for path in backbone(root).glob("*.onnx")}
    export(ExportConfig(bundle=calibrated_run, out=root, files=FileOptions(precision="fp16")))
    assert {path.name: path.stat().st_ino for path in backbone(root).glob("*.onnx")} == before
    assert not (root / "tasks" / "parts" / "folded.int8.onnx").exists()
    links = json.loads((root / "tasks" / "parts" / "parity.json").read_text())["links"]
    assert [link["second"] for link in links][-2:] == ["folded.fp16.onnx", "shared.fp16.onnx"]


def test_int8_without_calibration_leaves_the_store_as_it_was(parts_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"calibration\.npz: no such file; int8 is calibrated on it"):
        export(ExportConfig(bundle=parts_run, out=tmp_path / "store", files=FileOptions(precision="int8")))
    assert not (tmp_path / "store").exists()


def test_a_file_that_is_not_finite_is_named_and_not_written(
    calibrated_run: Path, parts_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(parts_store, tmp_path / "store"))

    def spoil(graph: onnx.ModelProto) -> onnx.ModelProto:
        (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "blocks.3.mlp.fc2.weight")
        infinite = np.full(tuple(weight.dims), np.inf, dtype=np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(infinite, weight.name))
        return graph

    monkeypatch.setattr("export.formats.to_fp16", spoil)
    before = {path: sha256(path) for path in root.rglob("*") if path.is_file()}
    with pytest.raises(
        ParityError, match=r"^folded\.fp16\.onnx: node \w+ \(MatMul, blocks\.3\.mlp\.fc2\.weight\) makes"
    ):
        export(ExportConfig(bundle=calibrated_run, out=root, files=FileOptions(precision="fp16")))
    assert {path: sha256(path) for path in root.rglob("*") if path.is_file()} == before


@dataclass(frozen=True)
class Built:
    """A store with engines, the export that built them, and what it printed."""

    config: ExportConfig
    printed: str

    def record(self, lane: str, precision: str) -> tuple[Path, dict[str, Any]]:
        """An engine, and what `engine.json` says of it."""
        folder = self.config.out / "tasks" / "parts" if lane == "folded" else backbone(self.config.out)
        path = folder / f"{lane}.{precision}.sm86.engine"
        record: dict[str, Any] = json.loads((folder / "engine.json").read_text())["engines"][path.name]
        return path, record


@pytest.fixture(scope="module")
def built(calibrated_run: Path, format_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Engines for a GPU that is not here."""
    pytest.importorskip("tensorrt_rtx")
    files = FileOptions(
        precision="fp16,int8",
        targets="onnx,tensorrt",
        engine_backend="tensorrt_rtx",
        compute_capability="sm86",
        batch_sizes=(4, 1),
    )
    root = Path(shutil.copytree(format_store, tmp_path_factory.mktemp("engines") / "store"))
    config = ExportConfig(bundle=calibrated_run, out=root, files=files)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr("export.engine_files.device_capability", lambda: None)
        export(config)
        yield Built(config, printed.getvalue())


LANES = [("folded", None), ("shared", [64, 64])]


def test_engines_lie_beside_their_graphs_with_a_record(built: Built) -> None:
    for lane, bank in LANES:
        for precision in ("fp16", "int8"):
            path, record = built.record(lane, precision)
            assert record["sha256"] == sha256(path)
            assert (record["precision"], record["capability"]) == (precision, "sm86")
            assert (record["library"], record["batch_sizes"], record["bank"]) == ("tensorrt_rtx", [1, 4], bank)


def test_an_engine_s_record_names_the_graph_that_it_was_built_from(built: Built) -> None:
    for lane, _ in LANES:
        for precision, source in (("fp16", "fp16"), ("int8", "int8-tensorrt")):
            path, record = built.record(lane, precision)
            assert record["onnx"] == f"{lane}.{source}.onnx"
            assert record["onnx_sha256"] == sha256(path.parent / record["onnx"])


def test_an_engine_that_nothing_could_run_says_so(built: Built) -> None:
    assert "parity: deferred for folded.fp16.sm86.engine, folded.int8.sm86.engine, shared.fp16" in built.printed
    assert {built.record(lane, "fp16")[1]["parity"] for lane, _ in LANES} == {"deferred"}


def test_a_shared_engine_is_not_built_again(built: Built) -> None:
    path, _ = built.record("shared", "fp16")
    kept = path.stat().st_ino
    export(built.config)
    assert path.stat().st_ino == kept


def test_the_overview_shows_the_accuracy_of_every_file_on_the_validation_images(
    calibrated_run: Path, format_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, labelled = (
        shutil.copytree(format_store, tmp_path / "store"),
        shutil.copytree(calibrated_run, tmp_path / "run"),
    )
    bundle = Bundle.load(calibrated_run)
    validation = np.random.default_rng(2).integers(0, 256, (4, 160, 160, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = restore(bundle)(torch.from_numpy(bundle.record.preprocess.normalise(validation)))
    # Three of the four labels are what the task says, the last is another.
    labels = (logits.argmax(1).numpy() + np.array([0, 0, 0, 1])) % logits.shape[1]
    np.savez_compressed(labelled / "calibration.npz", images=validation, validation=validation, labels=labels)
    export(ExportConfig(bundle=labelled, out=root, files=FileOptions(precision="fp16")))
    shown = [
        line.split() for line in capsys.readouterr().out.splitlines() if ".onnx  " in line and "parity" not in line
    ]
    assert [(cells[0], cells[-2]) for cells in shown] == [
        (f"{lane}.{name}", "0.750") for lane in ("folded", "shared") for name in ("onnx", "fp16.onnx")
    ]


def test_the_overview_has_a_line_a_file_and_names_what_was_not_measured(format_store: Path) -> None:
    folder = format_store / "tasks" / "parts"
    text = overview([Written(folder / "folded.onnx", None, None, None)], folder, images=0)
    first, second, third, last = text.splitlines()
    assert first.split()[:2] == ["file", "MB"]
    assert second.split() == [
        "folded.onnx",
        f"{(folder / 'folded.onnx').stat().st_size / 1e6:.1f}",
        "deferred",
        *("not", "measured") * 2,
    ]
    assert third.startswith("parity: deferred for folded.onnx: no GPU here")
    assert f"mosa evaluate --onnx FILE, and --bundle {folder}" in last


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"precision": "fp32,fp8"}, r"^unknown --precision 'fp8'; did you mean fp32 or fp16\?$"),
        ({"precision": ""}, r"^unknown --precision ''; known: fp16, fp32, int8$"),
        ({"targets": "onnx,openvino"}, r"^unknown --targets 'openvino'; did you mean onnx\?$|known: onnx, tensorrt"),
        ({"engine_backend": "trt"}, r"^unknown --engine-backend 'trt'; (did you mean|known: )"),
        ({"batch_sizes": ()}, r"^--batch-sizes: give at least one$"),
        ({"batch_sizes": (0, 4), "bank_slots": 0}, r"^--batch-sizes 0: at least 1; --bank-slots 0: at least 1$"),
        ({"compute_capability": "sm86"}, r"^--compute-capability: engines are built with --targets onnx,tensorrt$"),
    ],
)
def test_options_that_cannot_be_are_refused_all_at_once(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        FileOptions(**options)
