"""`--backbone-weights FILE`."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.backbone import Weights, fingerprint, load_backbone
from mosa_deploy.errors import BackboneError

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, int] = {"depth": 2, "embed_dim": 12, "num_heads": 3, "img_size": 32}


# numpy leaves a .npz open that is damaged, and timm one that does not fit.
pytestmark = pytest.mark.filterwarnings(r"ignore:.*\.npz:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What is left open is closed in the test that opened it."""
    yield
    gc.collect()


@pytest.fixture
def model() -> VisionTransformer:
    """What the files hold: a small random ViT with a head."""
    return load_backbone(NAME, Weights("random"), classes=4, **SMALL)


def load(file: Path) -> VisionTransformer:
    return load_backbone(NAME, Weights("file", file), **SMALL)


def refusal(file: Path) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(BackboneError) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def google(model: VisionTransformer) -> dict[str, NDArray[np.float32]]:
    """The state of `model` by the names and in the layout of Google's ViT checkpoints, head and all."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    width, heads = model.embed_dim, 3
    npz = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            npz[f"{theirs}/LayerNorm_{number}/scale"] = state[f"{ours}.{norm}.weight"]
            npz[f"{theirs}/LayerNorm_{number}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            npz[f"{attention}/{name}/kernel"] = state[f"{ours}.attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            npz[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][rows].reshape(heads, -1)
        npz[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        npz[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for layer in (0, 1):
            npz[f"{theirs}/MlpBlock_3/Dense_{layer}/kernel"] = state[f"{ours}.mlp.fc{layer + 1}.weight"].T
            npz[f"{theirs}/MlpBlock_3/Dense_{layer}/bias"] = state[f"{ours}.mlp.fc{layer + 1}.bias"]
    return npz


def test_safetensors_come_back_without_their_head(model: VisionTransformer, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert not any(name.startswith("head.") for name in loaded.state_dict())


def test_googles_npz_gives_the_same_backbone(model: VisionTransformer, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", allow_pickle=False, **google(model))
    loaded = load(tmp_path / "w.npz")
    model.reset_classifier(0)
    assert fingerprint(loaded.state_dict()) == fingerprint(model.state_dict())


def test_all_wrong_names_and_shapes_are_listed(model: VisionTransformer, tmp_path: Path) -> None:
    state = model.state_dict() | {"extra": torch.zeros(1), "blocks.1.mlp.fc2.weight": torch.zeros(2, 3)}
    del state["norm.bias"]
    save_file(state, tmp_path / "w.safetensors")
    faults = "blocks.1.mlp.fc2.weight is (2, 3), not (12, 48); missing norm.bias; unexpected extra"
    assert (
        refusal(tmp_path / "w.safetensors")
        == f"--backbone-weights {tmp_path}/w.safetensors does not fit {NAME}: {faults}"
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("patch_embed.proj.weight", (10, 3)), ("pos_embed", (1, 7, 5)), ("patch_embed.proj.weight", (3,))],
)
def test_embeddings_that_timm_cannot_resample_are_refused(
    model: VisionTransformer, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    save_file(model.state_dict() | {name: torch.zeros(shape)}, tmp_path / "w.safetensors")
    assert refusal(tmp_path / "w.safetensors").startswith(f"--backbone-weights {tmp_path}/w.safetensors ")


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_an_npz_that_does_not_fit_is_refused(model: VisionTransformer, tmp_path: Path, change: str) -> None:
    npz = google(model)
    weight = npz.pop("Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel")
    if change == "misshapen":
        npz["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"] = weight[:, :5]
    np.savez(tmp_path / "w.npz", allow_pickle=False, **npz)
    assert refusal(tmp_path / "w.npz").startswith(f"--backbone-weights {tmp_path}/w.npz cannot be read: ")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, hello, hello", b"PK\x03\x04" + bytes(40)])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    assert refusal(file).startswith(f"--backbone-weights {file} cannot be read: ")


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "w.npz") == f"--backbone-weights {tmp_path}/w.npz: no such file"
    (tmp_path / "w.pth").touch()
    assert refusal(tmp_path / "w.pth") == f"--backbone-weights {tmp_path}/w.pth: give a .safetensors or .npz file"
