"""Which tensors of a model a task owns, by their names alone."""

import pytest

from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, Method
from mosa_deploy.bundles.ownership import owns
from mosa_deploy.bundles.topology import BlockTopology

VIT, SWIN = BlockTopology(2, 12), BlockTopology(2, 12, (1, 1))
WEIGHTS = [
    "cls_token",
    "patch_embed.proj.weight",
    "blocks.0.norm1.weight",
    "blocks.0.ls1.gamma",
    "blocks.0.attn.qkv.weight",
]
BIASES = ["patch_embed.proj.bias", "blocks.0.norm1.bias", "blocks.0.attn.qkv.bias", "norm.bias"]
HEAD = ["head.bias", "head.weight"]


def test_the_biases_of_q_and_v_in_a_dinov3_are_biases_and_its_layer_scale_is_none() -> None:
    names = ["blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.gamma_1"]
    assert [owns("bitfit", name, VIT) for name in names] == [True, True, False]


@pytest.mark.parametrize(
    ("method", "own"),
    [("mosa", HEAD), ("linear", HEAD), ("bitfit", [*BIASES, *HEAD]), ("full", [*WEIGHTS, *BIASES, *HEAD])],
)
def test_a_task_owns_the_head_and_what_its_method_tunes(method: Method, own: list[str]) -> None:
    assert [name for name in (*WEIGHTS, *BIASES, *HEAD) if owns(method, name, VIT)] == own


def test_adapters_and_the_query_of_a_probe_are_owned_and_what_lies_below_a_probe_is_not() -> None:
    assert owns("mosa", "blocks.1.adapter.up.base", VIT)
    assert owns("attentive", "query", VIT)
    assert not owns("attentive", "backbone.norm.bias", VIT)


def test_the_head_of_a_swin_lies_deeper_and_its_tables_of_positions_are_no_biases() -> None:
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert [owns(method, table, SWIN) for method in BACKBONE_METHODS] == [True, False]
    assert owns("linear", "head.fc.weight", SWIN)
    assert not owns("linear", "head.weight", SWIN)
