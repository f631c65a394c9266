"""Finished runs that are made without tuning, and a task that tunes fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mosa_deploy.adapters.attach import attach, split_layers, task_state
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle, Tensors
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import Backbone, Record
from tests.support.models import perturb
from training.recipe import Recipe
from training.tasks.base import Example, Splits, stratified
from training.tasks.digits import Digits

Once = Callable[[str, Callable[[Path], Any]], Path]


class Few:
    """60 images of the digits 0 to 2."""

    name = "few"
    recipe = Recipe(backbone=embedded.NAME, bottleneck=2, scale=1.0, epochs=2, batch_size=8, lr=1e-2)
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        whole = Digits().splits(None, None)
        kept = [example for label in range(3) for example in whole.train if example.label == label]
        examples = [example for label in range(3) for example in of_class(kept, label)[:20]]
        return Splits(whole.classes[:3], *stratified(examples, (0.6, 0.2, 0.2), whole.classes[:3]), note="60/20/20")


def write_few(folder: Path) -> Path:
    """Write the images of `Few` into `folder/few`, and a file of tasks that names them; returns the file."""
    splits = Few().splits(None, None)
    for name, examples in splits.sets().items():
        for i, example in enumerate(examples):
            path = folder / Few.name / name / splits.name_of(example.label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(example.read())
    file = folder / "tasks.toml"
    own = f'data_dir = "{Few.name}"\nbackbone = "{embedded.NAME}"\nbottleneck = 2\nbatch_size = 8\n'
    file.write_text(f"[tasks.{Few.name}]\n{own}")
    return file


def of_class(examples: list[Example], label: int) -> list[Example]:
    return [example for example in examples if example.label == label]


BACKBONE = "test_vit2"
"""timm's own small ViT for tests: embed_dim 64, depth 8, hidden width 192, LayerScale, 160 px."""

TEMPERATURE = 2.5

PARALLEL = AdapterConfig(bottleneck=4, experts=3, share="none")


def make_run(
    folder: Path, weights: Weights | None = None, adapter: AdapterConfig = PARALLEL, name: str = "parts"
) -> Bundle:
    """Save a split bundle of three classes on random weights, or on `weights`."""
    model = load_backbone(BACKBONE, weights or Weights("random"))
    sha256 = fingerprint(model.state_dict())
    torch.manual_seed(0)
    model.reset_classifier(3)
    attach(model, adapter)
    perturb(model.eval())
    assert len(split_layers(model)) in (16, 32)

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), TEMPERATURE)

    noise = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    preprocess = Preprocess(size=(160, 160))
    record = Record(
        task=name,
        dataset="parts",
        backbone=Backbone(
            name=BACKBONE, source=weights.source if weights else "random", sha256=sha256, depth=8, embed_dim=64
        ),
        method="mosa" if adapter.style == "parallel" else "mosl",
        form="split",
        adapter=adapter,
        classes=("bolt", "nut", "washer"),
        preprocess=preprocess,
        temperature=TEMPERATURE,
        metrics={},
        seed=0,
        versions={},
        git_commit=None,
    )
    canary = Canary.record([encode(image) for image in noise], preprocess, answer)
    tensors = {name: value.numpy() for name, value in task_state(model).items()}
    return Bundle(record, tensors, canary).save(folder)


def small_bundle() -> Bundle:
    """A split bundle of one block: embed_dim 3, bottleneck 2, two experts, `up` split."""
    shapes: dict[str, tuple[int, ...]] = {
        "head.weight": (2, 3),
        "head.bias": (2,),
        "blocks.0.adapter.norm.weight": (3,),
        "blocks.0.adapter.norm.bias": (3,),
        "blocks.0.adapter.down.weight": (2, 3),
        "blocks.0.adapter.down.bias": (2,),
        "blocks.0.adapter.up.weight": (3, 2),
        "blocks.0.adapter.up.base": (3, 2),
        "blocks.0.adapter.up.bias": (2, 3),
    }
    random = np.random.default_rng(0)
    tensors: Tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["blocks.0.adapter.up.owner"] = np.array([[0, 1], [1, 0], [0, 1]], dtype=np.uint8)
    record = Record(
        task="toy",
        dataset="digits",
        backbone=Backbone(name="vit_toy", source="random", sha256="ab" * 32, depth=1, embed_dim=3),
        method="mosa",
        form="split",
        adapter=AdapterConfig(bottleneck=2, experts=2),
        classes=("río", "sea"),
        preprocess=Preprocess(size=(8, 8)),
        temperature=1.5,
        metrics={"accuracy": 0.5},
        seed=3,
        versions={"python": "3"},
        git_commit=None,
    )
    canary = Canary((b"first", b"second image"), np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))
    return Bundle(record, tensors, canary)
