from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import mosa_deploy
from mosa_deploy import AdapterConfig, Bundle, attach, fold, load_backbone, merge, save_bundle, two_pass_loss
from mosa_deploy.adapters.attach import freeze
from mosa_deploy.adapters.restore import describe_backbone, restore
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, BackboneMethod
from mosa_deploy.bundles.record import Backbone
from mosa_deploy.errors import ConfigError, DataError
from tests.support.models import perturb
from tests.support.tasks import picture

CLASSES = ("rose", "violet", "lily")
IMAGES = [picture(seed) for seed in range(9)]
SPLIT = AdapterConfig(bottleneck=2, experts=2, scale=1.0)


def tuned(config: AdapterConfig | None) -> Transformer:
    """The embedded backbone with adapters that change its answers."""
    torch.manual_seed(0)
    model = load_backbone(EMBEDDED, classes=len(CLASSES))
    if config is not None:
        perturb(attach(model, config))
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.randn(2, 3, 32, 32))
    return found


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (SPLIT, "mosa"),
        (AdapterConfig(bottleneck=2, experts=1), "adapter"),
        (AdapterConfig(bottleneck=2, experts=2, style="low-rank", targets=("q", "v")), "mosl"),
        (AdapterConfig(bottleneck=2, experts=1, style="low-rank", targets=("q", "v")), "lora"),
        (AdapterConfig(bottleneck=2, experts=2, style="repadapter"), "mosa"),
        (AdapterConfig(bottleneck=2, experts=1, style="repadapter", groups=2), "repadapter"),
        (AdapterConfig(style="ssf", scale=1.0), "ssf"),
        (AdapterConfig(bottleneck=2, experts=2, style="houlsby", scale=1.0), "mosa"),
        (None, "linear"),
    ],
)
def test_a_saved_model_comes_back_as_it_was(config: AdapterConfig | None, method: str, tmp_path: Path) -> None:
    model = tuned(config)
    save_bundle(model, config, str(tmp_path), task="flowers", classes=CLASSES, images=IMAGES)
    bundle = Bundle.load(tmp_path)
    assert bundle.record.method == method
    np.testing.assert_allclose(logits(restore(bundle)), logits(model), atol=1e-6)


@torch.no_grad()
def tuned_itself(method: BackboneMethod) -> tuple[Transformer, Backbone]:
    """The embedded backbone with other parameters, and what it was before."""
    model = tuned(None)
    before = describe_backbone(EMBEDDED, "pretrained", model)
    freeze(model, method)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model, before


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_a_backbone_that_was_tuned_itself_comes_back_as_it_was(method: BackboneMethod, tmp_path: Path) -> None:
    model, before = tuned_itself(method)
    given = save_bundle(
        model, None, tmp_path, task="flowers", classes=CLASSES, images=IMAGES, method=method, tuned_from=before
    )
    bundle = Bundle.load(tmp_path)
    assert bundle.digest == given.digest
    assert (bundle.record.method, bundle.record.backbone) == (method, before)
    assert any(name.endswith("qkv.weight") for name in bundle.tensors) == (method == "full")
    assert torch.equal(logits(restore(bundle)), logits(model))


def test_a_tuned_backbone_needs_what_it_was_before(tmp_path: Path) -> None:
    model, before = tuned_itself("bitfit")
    expected = r"^'flowers' by method (bitfit|None): full and bitfit come without a config and with tuned_from, which"
    with pytest.raises(ConfigError, match=expected):
        save_bundle(model, None, tmp_path, task="flowers", classes=CLASSES, images=IMAGES, method="bitfit")
    with pytest.raises(ConfigError, match=expected):
        save_bundle(model, None, tmp_path, task="flowers", classes=CLASSES, images=IMAGES, tuned_from=before)


def test_the_canary_holds_what_the_model_says_of_the_first_eight_images(tmp_path: Path) -> None:
    model = tuned(SPLIT)
    bundle = save_bundle(model, SPLIT, tmp_path, task="flowers", classes=CLASSES, images=IMAGES, temperature=2.0)
    inputs = torch.from_numpy(bundle.canary.inputs(bundle.record.preprocess))
    with torch.inference_mode():
        expected = (model(inputs) / 2.0).softmax(dim=1).numpy()
    assert bundle.canary.images == tuple(IMAGES[:8])
    np.testing.assert_allclose(bundle.canary.probabilities, expected, atol=1e-6)


def test_a_model_in_training_is_left_in_training(tmp_path: Path) -> None:
    model = tuned(SPLIT).train()
    save_bundle(model, SPLIT, tmp_path, task="flowers", classes=CLASSES, images=IMAGES)
    assert model.training


def test_a_merged_model_is_saved_merged(tmp_path: Path) -> None:
    model = merge(tuned(SPLIT))
    assert save_bundle(model, SPLIT, tmp_path, task="flowers", classes=CLASSES, images=IMAGES).record.form == "merged"


def test_images_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(IMAGES[0])
    given = [str(tmp_path / "one.png")]
    bundle = save_bundle(tuned(SPLIT), SPLIT, tmp_path / "run", task="flowers", classes=CLASSES, images=given)
    assert bundle.canary.images == (IMAGES[0],)


def test_a_bundle_is_loaded_and_saved_by_a_path_as_text(tmp_path: Path) -> None:
    save_bundle(tuned(SPLIT), SPLIT, tmp_path / "run", task="flowers", classes=CLASSES, images=IMAGES)
    bundle = Bundle.load(str(tmp_path / "run"))
    bundle.save(str(tmp_path / "copy"))
    assert Bundle.load(tmp_path / "copy").digest == bundle.digest


def test_a_backbone_takes_the_weights_of_a_file_by_its_path(tmp_path: Path) -> None:
    model = load_backbone(EMBEDDED)
    safetensors.torch.save_file({k: v + 1 for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_backbone(EMBEDDED, str(tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(loaded[name], value + 1) for name, value in model.state_dict().items())


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        save_bundle(tuned(SPLIT), SPLIT, tmp_path, task="flowers", classes=CLASSES, images=[tmp_path / "none.png"])


def test_as_many_classes_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^2 classes for a head of 3 outputs"):
        save_bundle(tuned(SPLIT), SPLIT, tmp_path, task="flowers", classes=CLASSES[:2], images=IMAGES)


def test_no_images_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^'flowers' needs images"):
        save_bundle(tuned(SPLIT), SPLIT, tmp_path, task="flowers", classes=CLASSES, images=[])


def test_attach_leaves_only_adapters_and_head_to_be_trained() -> None:
    trained = {name for name, value in tuned(SPLIT).named_parameters() if value.requires_grad}
    assert trained
    assert all(".adapter." in name or name.startswith("head.") for name in trained)


def test_two_pass_loss_is_the_formula() -> None:
    model = tuned(SPLIT).train()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    mosa_deploy.adapters.attach.reseed(model, 0, 0)
    given = two_pass_loss(model, images, labels, consistency=0.5).item()
    mosa_deploy.adapters.attach.reseed(model, 0, 0)
    first, second = model(torch.cat([images, images])).double().softmax(dim=1).chunk(2)
    divergence = (first * (first / second).log()).sum() + (second * (second / first).log()).sum()
    expected = -first[range(4), labels].log().mean() + 0.5 * divergence / 2 / 4
    assert given == pytest.approx(expected.item(), rel=1e-4)


def test_a_user_loop_ends_in_an_ordinary_timm_model() -> None:
    model = tuned(SPLIT)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    before = two_pass_loss(model.train(), images, labels).item()
    for _ in range(5):
        optimizer.zero_grad()
        two_pass_loss(model, images, labels).backward()
        optimizer.step()
    assert two_pass_loss(model, images, labels).item() < before
    plain = fold(merge(model)).eval()
    assert {type(part).__module__.partition(".")[0] for part in plain.modules()} <= {"timm", "torch"}
    np.testing.assert_allclose(logits(plain), logits(model.eval()), atol=1e-5)
