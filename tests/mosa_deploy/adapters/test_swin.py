"""What is Swin's own: names and widths, a norm that is the block's, and refusals; `test_families` has the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.attach import adapters, attach, freeze, task_state
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import Transformer, blocks_of, topology_of
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig, Style
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import parse_record
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import BackboneError, BundleError
from tests.support import swin
from tests.support.models import perturb

CONFIG = AdapterConfig(bottleneck=3, experts=2, scale=0.7)


def backbone() -> SwinTransformer:
    model = load_backbone(swin.NAME, Weights("random"), 4)
    assert isinstance(model, SwinTransformer)
    return model


@pytest.mark.parametrize("name", ["swin_base_patch4_window7_224", "swin_s3_tiny_224", "vit_tiny_patch16_224"])
def test_a_frame_has_timms_own_names_and_widths(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert isinstance(model, Transformer)
    topology, parts = topology_of(model), dict(model.named_modules())
    norms: dict[str, Any] = {
        path.removesuffix(".norm2"): part for path, part in parts.items() if path.endswith(".norm2")
    }
    assert topology.blocks == {path: norm.weight.numel() for path, norm in norms.items()}
    assert topology.depth == len(norms)
    head: Any = model.get_classifier()
    assert parts[topology.head] is head
    assert topology.features == head.in_features


@pytest.mark.parametrize(
    ("topology", "text"),
    [(BlockTopology(2, 24), "2 blocks of width 24"), (BlockTopology(4, 16, (2, 2)), "4 blocks of width 16 to 32")],
)
def test_a_frame_says_how_deep_and_wide(topology: BlockTopology, text: str) -> None:
    assert str(topology) == text


def test_an_adapted_block_is_the_formula_of_norm2_written_out() -> None:
    config = AdapterConfig(bottleneck=3, scale=0.7)
    plain = blocks_of(backbone().double())["layers.1.blocks.1"]
    assert isinstance(plain, SwinTransformerBlock)
    assert plain.shift_size == (2, 2)
    model = attach(backbone(), config, split=False)
    freeze(model)
    for parameter in (p for adapter in adapters(model) for p in adapter.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, 8, 32, dtype=torch.float64)
    block = blocks_of(model.double().eval())["layers.1.blocks.1"]
    adapter = block.adapter
    assert isinstance(adapter, ParallelAdapter)
    h = x + plain._attn(plain.norm1(x))
    deviation = (h.var(-1, correction=0, keepdim=True) + plain.norm2.eps).sqrt()
    z = (h - h.mean(-1, keepdim=True)) / deviation * plain.norm2.weight + plain.norm2.bias
    beside = F.gelu(z @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(block(x), h + plain.mlp(z) + 0.7 * beside, rtol=0, atol=1e-12)
    assert (0.7 * beside).abs().max() > 0.1


def test_the_norm_is_norm2s_and_training_leaves_it() -> None:
    model = attach(backbone(), CONFIG)
    freeze(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name for name in task_state(model) if not name.endswith((".base", ".owner"))}
    norms = {f"{block}.adapter.norm.{part}" for block in topology_of(model).blocks for part in ("weight", "bias")}
    assert len(norms) == 8
    assert trained == own - norms
    state = model.state_dict()
    for name in norms:
        assert torch.equal(state[name], state[name.replace(".adapter.norm.", ".block.norm2.")])


@pytest.mark.parametrize("style", ["low-rank", "pfeiffer", "houlsby"])
def test_other_styles_are_refused_with_those_that_work(style: Style) -> None:
    model = backbone()
    config = AdapterConfig(style=style, scale=1.0, targets=("q",) if style == "low-rank" else ())
    expected = f"^{style} adapters: a Swin takes .*: choose method mosa, adapter or linear, style parallel$"
    with pytest.raises(BackboneError, match=expected):
        attach(model, config)
    assert not adapters(model)


def test_a_record_without_stages_is_of_a_vit_and_one_whose_stages_do_not_add_up_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    fields = json.loads(bundle.save(tmp_path).record.model_dump_json())
    del fields["backbone"]["stages"]
    assert parse_record(json.dumps(fields).encode(), "old").backbone.topology.blocks == {"blocks.0": 3}
    fields["backbone"] |= {"stages": [1, 1], "depth": 3}
    with pytest.raises(BundleError, match=r"^new: backbone: .*stages of 1, 1 blocks are not 3 in all$"):
        parse_record(json.dumps(fields).encode(), "new")


def test_a_record_of_what_does_not_go_on_a_swin_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    fields = json.loads(bundle.save(tmp_path).record.model_dump_json())
    fields["backbone"] |= {"stages": [1]}
    assert parse_record(json.dumps(fields).encode(), "mosa").backbone.topology.head == "head.fc"
    fields["adapter"] |= {"style": "pfeiffer", "scale": 1.0}
    with pytest.raises(BundleError, match=r"^other: .* on vit_toy: a Swin takes adapters beside its FFNs: choose"):
        parse_record(json.dumps(fields).encode(), "other")


def test_a_swin_is_described_by_its_stages_and_without_its_head() -> None:
    described = describe_backbone(swin.NAME, "random", backbone())
    assert (described.depth, described.embed_dim, described.stages, described.hidden) == (4, 16, (2, 2), None)
    headless = load_backbone(swin.NAME, Weights("random"))
    assert described.sha256 == describe_backbone(swin.NAME, "random", headless).sha256


def test_weights_come_from_a_file_with_the_buffers_that_the_authors_save(tmp_path: Path) -> None:
    own = backbone()
    state: dict[str, Tensor] = dict(own.state_dict())
    for name, part in own.named_modules():
        if isinstance(part, WindowAttention):
            state[f"{name}.relative_position_index"] = part.get_buffer("relative_position_index")
    save_file(state, tmp_path / "swin.safetensors")
    loaded = load_backbone(swin.NAME, Weights("file", tmp_path / "swin.safetensors"))
    own.reset_classifier(0)
    assert describe_backbone(swin.NAME, "file", loaded).sha256 == describe_backbone(swin.NAME, "file", own).sha256
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), own.eval()(x))


def test_an_npz_is_refused_since_it_holds_a_vit(tmp_path: Path) -> None:
    path = tmp_path / "swin.npz"
    np.savez(path, kernel=np.zeros((4, 4, 3, 8), dtype=np.float32))
    with pytest.raises(BackboneError, match=r"swin\.npz: \.npz files hold ViTs only: give swin_for_tests as"):
        load_backbone(swin.NAME, Weights("file", path))


def test_an_adapter_changes_the_logits() -> None:
    model, x = backbone(), torch.randn(2, 3, 32, 32)
    before = model(x)
    attach(model, CONFIG)
    assert torch.equal(model.eval()(x), before)
    perturb(model)
    assert (model(x) - before).abs().max() > 1e-2
