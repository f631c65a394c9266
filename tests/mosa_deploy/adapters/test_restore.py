from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import Tensor

from mosa_deploy.adapters.attach import attach, split_layers, task_state
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Source, Weights, fingerprint, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Backbone
from mosa_deploy.errors import BackboneError
from tests.support.models import perturb

CONFIG = AdapterConfig(bottleneck=4, experts=3, share="none", scale=0.5)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tuned(source: Source) -> Transformer:
    model = load_backbone(embedded.NAME, Weights(source), classes=2)
    attach(model, CONFIG, seed=8)
    perturb(model)
    return model.eval()


def bundle_of(model: Transformer, like: Bundle, source: Source) -> Bundle:
    """What tuning `model` would have left, by the example of another bundle."""
    plain = load_backbone(embedded.NAME, Weights("random" if source == "random" else "pretrained"))
    backbone = Backbone(
        name=embedded.NAME, source=source, sha256=fingerprint(plain.state_dict()), depth=6, embed_dim=192
    )
    form = "split" if split_layers(model) else "merged"
    preprocess = Preprocess(size=(32, 32))
    record = like.record.model_copy(
        update={"backbone": backbone, "adapter": CONFIG, "form": form, "preprocess": preprocess}
    )
    return Bundle(record, {name: value.numpy() for name, value in task_state(model).items()}, like.canary)


@pytest.mark.parametrize("source", ["pretrained", "random"])
def test_a_split_bundle_becomes_the_tuned_model_again(bundle: Bundle, tmp_path: Path, source: Source) -> None:
    model = tuned(source)
    bundle_of(model, bundle, source).save(tmp_path)
    torch.manual_seed(99)
    restored = restore(Bundle.load(tmp_path))
    assert not restored.training
    assert len(split_layers(restored)) == 12
    assert torch.equal(restored(images()), model(images()))


def test_a_merged_bundle_becomes_the_merged_model_again(bundle: Bundle, tmp_path: Path) -> None:
    model = merge(tuned("pretrained")).eval()
    bundle_of(model, bundle, "pretrained").save(tmp_path)
    restored = restore(Bundle.load(tmp_path))
    assert not split_layers(restored)
    assert torch.equal(restored(images()), model(images()))


def test_a_linear_probe_becomes_a_backbone_with_its_head(bundle: Bundle) -> None:
    model = load_backbone(embedded.NAME, classes=2)
    probe = bundle_of(model, bundle, "pretrained")
    record = probe.record.model_copy(update={"adapter": None, "method": "linear"})
    restored = restore(Bundle(record, probe.tensors, probe.canary))
    assert torch.equal(restored(images()), model(images()))


def test_other_weights_of_the_same_backbone_are_refused_by_their_hash(bundle: Bundle) -> None:
    asked = bundle_of(tuned("random"), bundle, "random")
    found = fingerprint(load_backbone(embedded.NAME).state_dict())
    with pytest.raises(BackboneError) as caught:
        restore(asked, Weights("pretrained"))
    assert str(caught.value) == (
        f"'toy' was tuned on {embedded.NAME}-{asked.record.backbone.sha256[:8]}, these weights of {embedded.NAME} have"
        f" sha256 {found[:8]}: give the same weights with --backbone-weights, or tune the task again"
    )


def test_weights_from_a_file_must_be_given_again(bundle: Bundle, tmp_path: Path) -> None:
    model = tuned("pretrained")
    asked = bundle_of(model, bundle, "file")
    for given in (None, Weights("random"), Weights("pretrained")):
        with pytest.raises(
            BackboneError, match=r"^'toy' was tuned on weights from a file: give it .*--backbone-weights$"
        ):
            restore(asked, given)
    save_file(load_backbone(embedded.NAME).state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(restore(asked, Weights("file", tmp_path / "w.safetensors"))(images()), model(images()))


@pytest.mark.parametrize("source", ["file", "random"])
def test_a_task_tuned_at_another_image_size_comes_back_at_that_size(
    bundle: Bundle, tmp_path: Path, source: Source
) -> None:
    save_file(load_backbone(embedded.NAME).state_dict(), tmp_path / "w.safetensors")
    weights = Weights(source, tmp_path / "w.safetensors" if source == "file" else None)
    model = load_backbone(embedded.NAME, weights, img_size=(48, 40))
    sha256 = fingerprint(model.state_dict())
    assert sha256 != fingerprint(load_backbone(embedded.NAME, weights).state_dict())
    size = Preprocess.from_timm(resolve_model_data_config(model)).size
    assert size == (48, 40)
    model.reset_classifier(2)
    attach(model, CONFIG)
    perturb(model)
    asked = bundle_of(model, bundle, source)
    backbone = asked.record.backbone.model_copy(update={"sha256": sha256})
    record = asked.record.model_copy(update={"backbone": backbone, "preprocess": Preprocess(size=size)})
    x = torch.randn(2, 3, 48, 40)
    restored = restore(Bundle(record, asked.tensors, asked.canary), weights)
    assert torch.equal(restored(x), model.eval()(x))
