"""`--backbone-weights FILE`."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mosa_deploy.backbones.foldable import Transformer, blocks_of
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone
from mosa_deploy.errors import BackboneError

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 12, "num_heads": 3, "img_size": 32}

State = dict[str, Tensor]


@pytest.fixture
def model() -> Transformer:
    """What the files hold: a small random ViT with a head."""
    return load_backbone(NAME, Weights("random"), classes=4, **SMALL)


def load(file: Path) -> Transformer:
    return load_backbone(NAME, Weights("file", file), **SMALL)


def refusal(file: Path) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(BackboneError) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def google(model: Transformer) -> dict[str, NDArray[np.float32]]:
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
    for i in range(len(blocks_of(model))):
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


def test_safetensors_come_back_without_their_head(model: Transformer, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert not any(name.startswith("head.") for name in loaded.state_dict())


def moco(state: State) -> dict[str, Any]:
    """As MoCo v3 saves its training: the base encoder is evaluated, with a projector for a head."""
    base = {f"module.base_encoder.{name}": value for name, value in state.items()}
    momentum = {f"module.momentum_encoder.{name}": torch.zeros_like(value) for name, value in state.items()}
    heads = {"module.base_encoder.head.0.weight": torch.ones(3, 12), "module.predictor.0.weight": torch.ones(3, 3)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": momentum | base | heads, "optimizer": {"state": {}}}


def dino(state: State) -> dict[str, Any]:
    """As DINO saves its training: the teacher is evaluated."""
    student = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    teacher = {f"backbone.{name}": value for name, value in state.items()} | {"head.mlp.0.weight": torch.ones(3, 12)}
    return {"student": student, "teacher": teacher, "epoch": 300, "args": argparse.Namespace(arch="vit_small")}


def flat(state: State) -> dict[str, Any]:
    """As Lightning saves a training of a student and its teacher, in one state dict."""
    student = {f"student.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    return {"state_dict": student | {f"teacher.backbone.{name}": value for name, value in state.items()}}


def mae(state: State) -> dict[str, Any]:
    """As MAE saves its pre-training, decoder and all."""
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8)}
    decoder |= {"decoder_embed.weight": torch.ones(8, 12), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {"model": state | decoder, "epoch": 800, "scaler": {"scale": 1.0}, "args": argparse.Namespace(lr=1e-3)}


def deit(state: State) -> dict[str, Any]:
    """As DeiT saves its models."""
    return {"model": state | {"head.weight": torch.ones(1000, 12), "head.bias": torch.ones(1000)}}


def timms(state: State) -> dict[str, Any]:
    """As timm saves its training: the averaged weights are evaluated."""
    average = {f"module.{name}": value for name, value in state.items()}
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"epoch": 3, "arch": NAME, "state_dict": raw, "state_dict_ema": average, "metric": 81.2}


def compiled(state: State) -> dict[str, Any]:
    """As a compiled model saves its state dict."""
    return {f"_orig_mod.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(("suffix", "legacy"), [(".pth", False), (".pth.tar", True), (".pt", False), (".bin", True)])
@pytest.mark.parametrize("kind", [moco, dino, flat, mae, deit, timms, compiled, dict])
def test_a_checkpoint_of_torch_gives_the_backbone_that_its_authors_evaluate(
    model: Transformer, tmp_path: Path, kind: Callable[[State], dict[str, Any]], suffix: str, legacy: bool
) -> None:
    model.reset_classifier(0)
    file = tmp_path / f"w{suffix}"
    torch.save(kind(dict(model.state_dict())), file, _use_new_zipfile_serialization=not legacy)
    by_hand = timm.create_model(NAME, num_classes=0, **SMALL).eval()
    by_hand.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(file)(x), by_hand(x))


def test_layer_scales_by_the_names_of_deit_3_are_read(tmp_path: Path) -> None:
    name = "deit3_small_patch16_224"
    model = load_backbone(name, Weights("random"), **SMALL)
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in model.state_dict().items()}
    assert "blocks.0.gamma_2" in state
    torch.save({"model": state}, tmp_path / "w.pth")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_backbone(name, Weights("file", tmp_path / "w.pth"), **SMALL)(x), model(x))


def test_registers_by_the_names_of_dinov2_are_read(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    shape = SMALL | {"img_size": 28}
    model = load_backbone(name, Weights("random"), **shape)
    state = dict(model.state_dict())
    first = torch.randn(1, 1, 12)
    state |= {"mask_token": torch.ones(1, 12), "register_tokens": state.pop("reg_token")}
    state |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], dim=1)}
    torch.save(state, tmp_path / "w.pth")
    x = torch.randn(2, 3, 28, 28)
    loaded = load_backbone(name, Weights("file", tmp_path / "w.pth"), **shape)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-5)


def test_half_precision_is_read_as_single(model: Transformer, tmp_path: Path) -> None:
    torch.save(model.bfloat16().state_dict(), tmp_path / "w.pth")
    loaded, x = load(tmp_path / "w.pth"), torch.randn(2, 3, 32, 32)
    model.float()
    model.reset_classifier(0)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_at_another_image_size_the_position_embedding_is_resampled(
    model: Transformer, tmp_path: Path, suffix: str
) -> None:
    state, file = dict(model.state_dict()), tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(file, allow_pickle=False, **google(model))
    elif suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    loaded = load_backbone(NAME, Weights("file", file), **(SMALL | {"img_size": (64, 48)}))
    grid = state["pos_embed"][:, 1:].reshape(1, 2, 2, 12).permute(0, 3, 1, 2)
    # timm reads the weights of others by its own defaults, and Google's as Google resamples them.
    mode, antialias = ("bilinear", False) if suffix == ".npz" else ("bicubic", True)
    grid = F.interpolate(grid, size=(4, 3), mode=mode, antialias=antialias).flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], grid], dim=1)
    by_hand = timm.create_model(NAME, num_classes=0, **(SMALL | {"img_size": (64, 48)})).eval()
    by_hand.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(loaded(x), by_hand(x), rtol=0, atol=1e-5)


class Code:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What unpickling calls."""
        return Path.touch, (self.file,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_named_and_not_run(model: Transformer, tmp_path: Path, legacy: bool) -> None:
    file, made = tmp_path / "w.pth", tmp_path / "made"
    content = {"model": model.state_dict(), "args": Code(made)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    held = r"\((pathlib\S*|getattr|builtins\.getattr)\)"
    assert re.match(
        rf"--backbone-weights {file} holds more than tensors {held}, which may run code when it is read:"
        " if you trust it, run: python -c ",
        refusal(file),
    )
    assert not made.exists()


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    assert " holds a whole module (Linear), which is code: if you trust it, run: python -c " in refusal(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"model": 3}, {}, {"model": {}}, {"text": torch.zeros(2)}])
def test_what_is_no_state_dict_of_a_vit_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").startswith(f"--backbone-weights {tmp_path}/w.pth ")


def test_a_state_dict_of_another_kind_is_refused_by_its_own_names(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    said = "no tensor has one of timm's names, but there are conv1.0.weight, conv1.1.weight, conv1.1.bias, ..."
    assert refusal(tmp_path / "w.pth") == f"--backbone-weights {tmp_path}/w.pth does not fit {NAME}: {said}"


def test_a_distilled_deit_is_refused_by_the_token_that_a_plain_one_lacks(tmp_path: Path) -> None:
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)
    torch.save({"model": distilled.state_dict()}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").endswith(
        f"does not fit {NAME}: pos_embed is (1, 6, 12), not (1, 5, 12); unexpected dist_token"
    )


def test_a_pool_that_the_model_lacks_is_left_out(tmp_path: Path) -> None:
    pooled = load_backbone("vit_base_patch16_siglip_224", Weights("random"), **SMALL)
    save_file(pooled.state_dict(), tmp_path / "w.safetensors")
    file, x = Weights("file", tmp_path / "w.safetensors"), torch.randn(1, 3, 32, 32)
    tokens: Tensor = pooled.forward_features(x)
    averaged = load_backbone("vit_base_patch16_siglip_gap_224", file, **SMALL)
    torch.testing.assert_close(averaged(x), tokens.mean(1))


def test_googles_npz_gives_the_same_backbone(model: Transformer, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", allow_pickle=False, **google(model))
    loaded = load(tmp_path / "w.npz")
    model.reset_classifier(0)
    assert fingerprint(loaded.state_dict()) == fingerprint(model.state_dict())


def test_all_wrong_names_and_shapes_are_listed(model: Transformer, tmp_path: Path) -> None:
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
    model: Transformer, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    save_file(model.state_dict() | {name: torch.zeros(shape)}, tmp_path / "w.safetensors")
    assert refusal(tmp_path / "w.safetensors").startswith(f"--backbone-weights {tmp_path}/w.safetensors ")


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_an_npz_of_more_or_fewer_blocks_is_refused(tmp_path: Path, blocks: int, stacked: bool) -> None:
    npz = google(load_backbone(NAME, Weights("random"), 4, **(SMALL | {"depth": blocks})))
    if stacked:
        first = "Transformer/encoderblock_0/"
        parts = {name.removeprefix(first) for name in npz if name.startswith(first)}
        for part in parts:
            layers = [npz.pop(f"Transformer/encoderblock_{i}/{part}") for i in range(blocks)]
            npz[f"Transformer/encoderblock/{part}"] = np.stack(layers)
    np.savez(tmp_path / "w.npz", allow_pickle=False, **npz)
    said = f"--backbone-weights {tmp_path}/w.npz does not fit {NAME}: it has {blocks} blocks, not 2"
    assert refusal(tmp_path / "w.npz") == said


def test_what_an_npz_does_not_hold_is_listed(model: Transformer, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", allow_pickle=False, **google(model))
    with pytest.raises(BackboneError) as caught:
        load_backbone(NAME, Weights("file", tmp_path / "w.npz"), **SMALL, global_pool="avg", init_values=1.0)
    scales = "; ".join(f"missing blocks.{i}.ls{j}.gamma" for i in (0, 1) for j in (1, 2))
    assert str(caught.value).endswith(f"does not fit {NAME}: {scales}; missing fc_norm.weight; missing fc_norm.bias")


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_an_npz_that_does_not_fit_is_refused(model: Transformer, tmp_path: Path, change: str) -> None:
    npz = google(model)
    weight = npz.pop("Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel")
    if change == "misshapen":
        npz["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"] = weight[:, :5]
    np.savez(tmp_path / "w.npz", allow_pickle=False, **npz)
    assert refusal(tmp_path / "w.npz").startswith(f"--backbone-weights {tmp_path}/w.npz cannot be read: ")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: fetch it again"),
        (b"<html>Not Found</html>", "is a web page, not weights: download the file itself, on the Hugging Face hub"),
        (b"hello, hello, hello", "cannot be read: it is no file of weights; fetch it again, or give weights as"),
        (b"PK\x03\x04" + bytes(40), "is cut short: fetch it again"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes, said: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    assert refusal(file).startswith(f"--backbone-weights {file} {said}")


def test_a_missing_file_and_a_graph_are_named(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "w.npz")
        == f"--backbone-weights {tmp_path}/w.npz: no such file; give a file or a folder on this machine"
    )
    (tmp_path / "w.onnx").write_bytes(b"graph")
    said = "is an ONNX graph, which has lost the names of its layers: give weights as .safetensors"
    assert said in refusal(tmp_path / "w.onnx")
