"""Converted bundles answer as the source library does, and go the whole way to the store."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from export.convert import convert
from export.export import export
from export.options import ExportConfig
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import read_samples
from mosa_deploy.bundles.graph_index import graph_file, read_index
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from tests.support.peft_models import (
    CLASSES,
    EQUAL,
    NAME,
    adapted,
    answers,
    config,
    converted,
    difference,
    images,
    of_timm,
    of_transformers,
    run_module,
    vit,
)
from tests.support.tasks import Traced
from tests.support.walker import ROOT

OLD_NAMES = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.mark.parametrize(
    ("settings", "targets", "rank"),
    [
        ({"target_modules": ["qkv"], "r": 4}, ("qkv",), 4),
        # `proj` alone is the patch embedding too.
        ({"target_modules": ["qkv", "attn.proj", "fc2"], "r": 3, "use_rslora": True}, ("qkv", "proj", "fc2"), 3),
        (
            {
                "target_modules": r"blocks\.\d\.(attn\.proj|mlp\.fc\d)",
                "r": 4,
                "lora_alpha": 6,
                "rank_pattern": {r"blocks\.[12]\.mlp\.fc1": 7, "proj": 2},
                "alpha_pattern": {r"3\.mlp\.fc2": 20, "^blocks.0.attn.proj": 1.5},
            },
            ("proj", "fc1", "fc2"),
            7,
        ),
        ({"target_modules": ["fc2"], "layers_to_transform": [1, 4], "layers_pattern": "blocks"}, ("fc2",), 8),
    ],
)  # fmt: skip
def test_an_adapter_on_timm_answers_as_peft_does(
    tmp_path: Path, settings: dict[str, Any], targets: tuple[str, ...], rank: int
) -> None:
    expected = answers(of_timm(tmp_path / "peft", lora_dropout=0.1, **settings))
    bundle, given = converted(tmp_path / "peft", tmp_path / "run")
    adapter = bundle.record.adapter
    assert adapter is not None
    assert (bundle.record.method, bundle.record.form, bundle.record.dataset) == ("lora", "merged", "folder")
    assert (adapter.targets, adapter.bottleneck, adapter.experts, adapter.dropout) == (targets, rank, 1, 0.1)
    assert difference(given, expected) < EQUAL
    untuned = of_timm(**settings)
    with untuned.disable_adapter():
        assert difference(answers(untuned), expected) > 1e-2


SETTINGS: dict[str, Any] = {
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": True,
    "rank_pattern": {r"layers\.[03]\.attention\.q_proj": 2, r"5\.mlp\.fc1": 9},
    "alpha_pattern": {"v_proj": 11},
}


@pytest.mark.parametrize("names", ["5.x", "4.x"])
def test_an_adapter_on_transformers_answers_as_peft_does(tmp_path: Path, names: str) -> None:
    expected = answers(of_transformers(tmp_path / "peft", tmp_path / "vit", **SETTINGS))
    if names == "4.x":
        rename_as_before(tmp_path / "peft")
    weights = tmp_path / "vit" / "model.safetensors"
    bundle, given = converted(tmp_path / "peft", tmp_path / "run", backbone_weights=weights, random_weights=False)
    adapter = bundle.record.adapter
    assert adapter is not None
    assert (adapter.targets, adapter.bottleneck) == (("q", "k", "v", "proj", "fc1", "fc2"), 9)
    assert bundle.record.backbone.source == "file"
    assert difference(given, expected) < EQUAL
    assert difference(answers(load_vit(weights)), expected) > 1e-2


def load_vit(weights: Path) -> torch.nn.Module:
    """The base model, its head random."""
    model = load_backbone(NAME, Weights("file", weights), CLASSES)
    randomise(model.get_classifier())
    return model


def rename_as_before(folder: Path) -> None:
    """Give an adapter the names that transformers had before 5.0."""

    def old(name: str) -> str:
        for new, before in OLD_NAMES.items():
            name = name.replace(new, before)
        return name

    file, text = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({old(name): value for name, value in load_file(file).items()}, file)
    settings = json.loads(text.read_text())
    settings["rank_pattern"] = {
        r"encoder\.layer\.[03]\.attention\.attention\.query": 2,
        r"5\.intermediate\.dense": 9,
    }
    settings["alpha_pattern"] = {"value": 11}
    text.write_text(json.dumps(settings))


def test_its_names_hide_no_part_that_the_backbone_pools_otherwise(tmp_path: Path) -> None:
    of_transformers(tmp_path / "peft", tmp_path / "vit", target_modules=["q_proj"])
    with pytest.raises(BackboneError, match=r"reads the class token .* pools by 'avg': give the timm ViT"):
        convert(config(tmp_path / "peft", tmp_path / "run", backbone="vit_tinyd6_patch4_32"))


def test_an_adapter_of_transformers_has_its_eps_on_weights_of_timm_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_transformers(tmp_path / "peft", tmp_path / "vit", target_modules=["q_proj"])
    convert(config(tmp_path / "peft", tmp_path / "run"))
    assert "norm_eps 1e-12: that of a ViT of transformers without a config.json" in capsys.readouterr().out
    record = Bundle.load(tmp_path / "run").record
    assert record.backbone.model_args == ModelArgs(norm_eps=1e-12)


def frozen_and_tuned(tmp_path: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Checkpoints head.pth, its backbone the random one, and full.safetensors, all of it moved."""
    head = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(head.get_classifier())
    torch.save(head.state_dict(), tmp_path / "head.pth")
    full = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(full, seed=5)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    return head, full


def test_a_head_on_the_frozen_backbone_is_a_linear_task_and_any_other_checkpoint_a_full_one(tmp_path: Path) -> None:
    head, full = frozen_and_tuned(tmp_path)
    linear, given = converted(tmp_path / "head.pth", tmp_path / "a", source="timm")
    assert (linear.record.method, linear.record.adapter, set(linear.tensors)) == (
        "linear",
        None,
        {"head.weight", "head.bias"},
    )
    assert difference(given, answers(head)) < EQUAL
    tuned, given = converted(tmp_path / "full.safetensors", tmp_path / "b", source="timm")
    assert (tuned.record.method, tuned.record.adapter, tuned.record.form) == ("full", None, "merged")
    assert set(tuned.tensors) == set(full.state_dict())
    assert difference(given, answers(full)) < EQUAL
    assert difference(answers(head), answers(full)) > 1e-2


def test_a_fully_tuned_vit_of_transformers_is_read_by_the_same_names(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "base")
    tuned = vit()
    randomise(tuned)
    tuned.save_pretrained(tmp_path / "tuned")
    path, base = (tmp_path / name / "model.safetensors" for name in ("tuned", "base"))
    settings = {"source": "timm", "random_weights": False}
    bundle, given = converted(path, tmp_path / "a", backbone_weights=base, **settings)
    assert bundle.record.method == "full"
    assert bundle.record.classes == tuple(f"class{i}" for i in range(CLASSES))
    assert difference(given, answers(tuned)) < EQUAL
    itself, given = converted(path, tmp_path / "b", backbone_weights=path, **settings)
    assert itself.record.method == "linear"
    assert difference(given, answers(tuned)) < EQUAL
    other, given = converted(path, tmp_path / "c", source="timm")
    assert other.record.method == "full"
    assert difference(given, answers(tuned)) < EQUAL


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    """Eleven images in two folders, and what is none."""
    rng = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / "images" / f"class {i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"no image either")
    return tmp_path / "images"


def test_the_first_images_are_the_canary_and_all_of_them_calibrate(tmp_path: Path, folder_of_images: Path) -> None:
    model = of_timm(tmp_path / "peft", target_modules=["qkv"])
    bundle, _ = converted(tmp_path / "peft", tmp_path / "run", images=folder_of_images)
    paths = sorted(folder_of_images.rglob("class*/*.png"))
    assert bundle.canary.images == tuple(path.read_bytes() for path in paths[:8])
    inputs = torch.from_numpy(bundle.canary.inputs(bundle.record.preprocess))
    with torch.inference_mode():
        expected = model(inputs).softmax(-1).numpy()
    np.testing.assert_allclose(bundle.canary.probabilities, expected, rtol=0, atol=EQUAL)
    samples = read_samples(tmp_path / "run", (160, 160))
    assert samples is not None
    assert len({image.tobytes() for image in samples.images}) == len(samples.images) == 11


def test_without_images_the_canary_is_noise_and_the_console_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_timm(tmp_path / "peft", target_modules=["qkv"])
    first, again = (converted(tmp_path / "peft", tmp_path / name)[0] for name in ("a", "b"))
    assert first.digest == again.digest
    assert len(first.canary.images) == 8
    assert "smooth noise: give --images FOLDER to use the task's images, which int8 needs" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"adapter.json", "adapter.safetensors"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, traced_store: Traced) -> Path:
    """A store that the tests below fill."""
    return Path(shutil.copytree(traced_store(NAME), tmp_path_factory.mktemp("converted") / "store"))


@pytest.mark.parametrize(
    ("targets", "checkpoint", "graph"),
    [
        (["qkv"], None, "shared-qkv.onnx"),
        (["fc1", "fc2"], None, "shared-fc1-fc2.onnx"),
        (None, "head.pth", "shared.onnx"),
        (None, "full.safetensors", None),
    ],
)
def test_what_was_converted_is_exported_with_its_shared_graph_or_to_the_folded_lane_only(
    tmp_path: Path, root: Path, targets: list[str] | None, checkpoint: str | None, graph: str | None
) -> None:
    if checkpoint is None:
        of_timm(tmp_path / "peft", target_modules=targets)
        run = convert(config(tmp_path / "peft", tmp_path / "run"))
    else:
        frozen_and_tuned(tmp_path)
        run = convert(config(tmp_path / checkpoint, tmp_path / "run", source="timm"))
    folder = export(ExportConfig(bundle=run, out=root))
    links = json.loads((folder / "parity.json").read_text())["links"]
    assert links[-1]["second"] == ("shared ONNX" if graph else "folded ONNX")
    assert all(link["max_error"] < EQUAL for link in links)
    assert graph is None or len(list(root.glob(f"backbones/*/{graph}"))) == 1


@pytest.mark.slow
def test_the_command_lines_of_the_readme_take_an_adapter_on_transformers_to_the_store(tmp_path: Path) -> None:
    of_transformers(tmp_path / "peft", tmp_path / "vit", target_modules=["q_proj", "v_proj"])
    shutil.copy(tmp_path / "vit" / "config.json", tmp_path / "peft")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"size": {"height": 160, "width": 160}}')
    weights = ["--backbone-weights", "vit/model.safetensors"]
    options = ["--preprocess", "vit/preprocessor_config.json", "--classes", "a,b,c,d,e"]
    lines = [
        ["export.convert", "--from", "peft", "peft", "--name", "parts", "--backbone", NAME, *weights, *options],
        ["export", "--bundle", "runs/parts", "--out", "artifacts", *weights],
    ]
    done = [run_module(line, tmp_path) for line in lines]
    assert [one.returncode for one in done] == [0, 0], "".join(one.stderr for one in done)
    assert f"\nparts: lora on {NAME}, 5 classes, rank 8 on q, v of 6 blocks; bundle " in done[0].stdout
    record = Bundle.load(tmp_path / "artifacts" / "tasks" / "parts").record
    assert record.classes == ("a", "b", "c", "d", "e")
    assert (record.preprocess.resize, record.preprocess.interpolation) == ("squash", "bilinear")
    assert record.backbone.hidden == 192
    assert list(tmp_path.glob("artifacts/backbones/*/shared-qkv.onnx"))


def test_a_mixed_batch_of_converted_tasks_answers_each_sample_by_its_own(tmp_path: Path) -> None:
    """The tasks share a backbone of transformers: one updates q and v, one q, k and v with other ranks, one nothing."""
    weights = tmp_path / "vit" / "model.safetensors"
    given = {"backbone_weights": weights, "random_weights": False}
    first = of_transformers(tmp_path / "first", tmp_path / "vit", target_modules=["q_proj", "v_proj"], r=3)
    base = vit(num_labels=3)
    randomise(base.classifier, seed=7)
    targets = ["q_proj", "k_proj", "v_proj"]
    second = adapted(base, tmp_path / "second", target_modules=targets, r=5, modules_to_save=["classifier"])
    bundles = [converted(tmp_path / n, tmp_path / f"run-{n}", name=n, **given)[0] for n in ("first", "second")]
    for name in ("first", "second"):
        run = tmp_path / f"run-{name}"
        export(ExportConfig(bundle=run, out=tmp_path / "store", backbone_weights=weights))
    (folder,) = (tmp_path / "store" / "backbones").iterdir()
    wanted = layout_of(bundles[0].record)
    bank = Bank(wanted, bottleneck=2)
    runner = SharedRunner(open_runner(graph_file(folder, read_index(folder), wanted.file)), bank)
    slots = [bank.write(adapter_weights(bundle)) for bundle in bundles]
    features = runner.run(images().numpy(), np.array([slots[i % 2] for i in range(8)]))
    answered = [answers(first).numpy(), answers(second).numpy()]
    for i, row in enumerate(features):
        weight, bias = (bundles[i % 2].tensors[f"head.{part}"].astype(np.float64) for part in ("weight", "bias"))
        logits = weight @ row + bias
        np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), answered[i % 2][i], rtol=0, atol=EQUAL)


def test_neither_peft_nor_transformers_is_loaded() -> None:
    code = "import sys, export.convert; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert "timm" in loaded
    assert not loaded & {"peft", "transformers", "accelerate", "tokenizers"}
