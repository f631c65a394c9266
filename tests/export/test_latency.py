import csv
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from export.latency import LatencyConfig, flops, main, models, ratio_interval, time_rounds
from mosa_deploy.backbone import Weights, load_backbone
from mosa_deploy.errors import BackboneError, ConfigError
from mosa_deploy.fold import widened_ratio
from mosa_deploy.preprocess import Array
from mosa_deploy.runners import OnnxRunner
from tests.export.conftest import BACKBONE, make_run


@dataclass(frozen=True)
class Printed:
    """What a run of the command line left."""

    folder: Path
    stdout: str

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        with (self.folder / "latency.csv").open() as handle:
            return {row["variant"]: row for row in csv.DictReader(handle)}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    folder, stdout = tmp_path_factory.mktemp("latency"), StringIO()
    flags = "--backbone vit_tinyd6_patch4_32.cifar10 --bottleneck 8 --seconds 0.2 --batch-sizes 1 --threads 1"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout):
        patch.setattr(sys, "argv", ["latency", *flags.split(), "--out", str(folder)])
        main()
    return Printed(folder, stdout.getvalue())


def vit_products(size: int, patch: int, dim: int, depth: int, hidden: int, classes: int) -> int:
    """Multiply-adds of a ViT with a class token, for one image."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    embedding = patches * (3 * patch * patch) * dim
    qkv, scores, mix, proj = tokens * dim * 3 * dim, tokens * tokens * dim, tokens * tokens * dim, tokens * dim * dim
    fc1, fc2 = tokens * dim * hidden, tokens * hidden * dim
    return embedding + depth * (qkv + scores + mix + proj + fc1 + fc2) + dim * classes


def test_the_table_compares_three_variants_and_is_kept_with_the_machine(printed: Printed) -> None:
    lines = [line for line in printed.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["variant", "---", "plain", "control", "folded"]
    text = (printed.folder / "latency.md").read_text()
    assert "\n".join(lines) in text
    assert "vit_tinyd6_patch4_32.cifar10, r = 8" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert " cores, " in text


def test_every_variant_has_as_many_rounds_nodes_and_a_ratio_to_plain(printed: Printed) -> None:
    rows = printed.rows
    assert list(rows) == ["plain", "control", "folded"]
    assert len({row["rounds"] for row in rows.values()}) == 1
    assert int(rows["plain"]["rounds"]) >= 10
    assert len({(row["nodes"], row["optimised_nodes"]) for row in rows.values()}) == 1
    assert {rows["plain"][name] for name in ("ratio", "ratio_low", "ratio_high", "flop_ratio")} == {"1.0"}
    for row in rows.values():
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])


def test_the_flop_ratio_of_the_run_is_that_of_the_wider_feed_forward(printed: Printed) -> None:
    tokens, dim, depth = 64, 192, 6
    block = tokens * dim * (3 * dim + dim + 2 * 768) + 2 * tokens * tokens * dim
    plain = tokens * 48 * dim + depth * block + dim * 10
    ratio = 1 + depth * 2 * tokens * dim * 8 / plain
    assert float(printed.rows["folded"]["flop_ratio"]) == pytest.approx(ratio, abs=1e-9)
    assert float(printed.rows["control"]["flop_ratio"]) == 1.0


def test_the_plot_is_a_picture_with_something_on_it(printed: Printed) -> None:
    with Image.open(printed.folder / "latency.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_every_round_runs_each_variant_once_in_a_changing_order(parts_store: Path) -> None:
    (path,) = parts_store.glob("backbones/*/plain.onnx")
    order: list[str] = []

    class Noted(OnnxRunner):
        def __init__(self, name: str) -> None:
            super().__init__(path, threads=1)
            self.name = name

        def run(self, *inputs: NDArray[Any]) -> Array:
            order.append(self.name)
            return super().run(*inputs)

    times = time_rounds({n: Noted(n) for n in "abc"}, np.zeros((1, 3, 160, 160), dtype=np.float32), seconds=0)
    assert {name: len(values) for name, values in times.items()} == {"a": 10, "b": 10, "c": 10}
    rounds = ["".join(order[i : i + 3]) for i in range(9, len(order), 3)]
    assert len(rounds) == 10
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 2


@pytest.mark.parametrize(("dim", "depth", "hidden", "classes"), [(12, 2, 48, 5), (24, 3, 52, 7)])
def test_flops_are_twice_the_products_of_the_formula(dim: int, depth: int, hidden: int, classes: int) -> None:
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        mlp_ratio=widened_ratio(hidden, dim),
        num_classes=classes,
    )
    assert flops(model.eval()) == 2 * vit_products(16, 8, dim, depth, hidden, classes)


@pytest.mark.parametrize(("bottleneck", "expected"), [(64, 1.0133), (16, 1.0033)])
def test_vit_b_16_pays_the_predicted_share_for_its_adapter(bottleneck: int, expected: float) -> None:
    with torch.device("meta"):
        pair = [VisionTransformer(mlp_ratio=widened_ratio(hidden, 768)) for hidden in (3072 + bottleneck, 3072)]
        ratio = flops(pair[0].eval()) / flops(pair[1].eval())
    assert ratio == pytest.approx(expected, abs=0.0005)


def test_an_interval_has_the_exact_median_and_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    draws = [rng.lognormal(np.log(1.05), 0.1, 101) for _ in range(40)]
    intervals = [ratio_interval(values) for values in draws]
    assert [median for median, _, _ in intervals] == [sorted(values)[50] for values in draws]
    assert 33 <= sum(low <= 1.05 <= high for _, low, high in intervals) <= 40
    assert np.mean([high - low for _, low, high in intervals]) < 0.08
    assert ratio_interval(np.ones(10)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("config", [LatencyConfig(), LatencyConfig(bundle=Path("runs/x"), backbone=BACKBONE)])
def test_either_a_bundle_or_a_backbone_is_timed(config: LatencyConfig) -> None:
    with pytest.raises(ConfigError, match=r"^give either --bundle FOLDER or --backbone NAME$"):
        models(config)


def test_a_backbone_alone_is_timed_with_adapters_that_do_something() -> None:
    plain, folded, what = models(LatencyConfig(backbone=BACKBONE, random_weights=True, bottleneck=6))
    assert what == f"{BACKBONE}, r = 6"
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = plain(images), folded(images)
    assert (a - b).abs().max() > 1e-2 * a.abs().max()
    state = folded.state_dict()
    assert state["blocks.0.mlp.fc1.weight"].shape == (192 + 6, 64)
    assert folded.get_classifier().weight.equal(plain.get_classifier().weight)


def test_a_bundle_is_timed_against_its_own_backbone(parts_run: Path) -> None:
    plain, folded, what = models(LatencyConfig(bundle=parts_run))
    assert what == f"parts on {BACKBONE}"
    assert plain.state_dict()["blocks.7.mlp.fc2.weight"].shape == (64, 192)
    assert folded.state_dict()["blocks.7.mlp.fc2.weight"].shape == (64, 192 + 4)
    assert plain.patch_embed.proj.weight.equal(folded.patch_embed.proj.weight)


def test_a_bundle_of_a_weights_file_is_timed_with_that_file_only(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(load_backbone(BACKBONE, Weights("random")).state_dict(), file)
    make_run(tmp_path / "run", Weights("file", file))
    with pytest.raises(BackboneError, match=r"give it again with --backbone-weights$"):
        models(LatencyConfig(bundle=tmp_path / "run"))
    plain, _, _ = models(LatencyConfig(bundle=tmp_path / "run", backbone_weights=file))
    assert type(plain) is VisionTransformer
