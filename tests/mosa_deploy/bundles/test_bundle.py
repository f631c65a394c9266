import dataclasses
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.bundles.adapter_config import AdapterConfig, Share
from mosa_deploy.bundles.bundle import Bundle, expected_shapes
from mosa_deploy.bundles.record import RECORD, TENSORS, read_record
from mosa_deploy.errors import BundleError, WriteError


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of a saved record."""
    path = folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_tensors(folder: Path, content: bytes) -> None:
    """Other tensors, with their hash set right."""
    (folder / TENSORS).write_bytes(content)
    edit(folder, sha256=hashlib.sha256(content).hexdigest())


def refusal(folder: Path) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_comes_back_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    saved = bundle.save(tmp_path / "run")
    loaded = Bundle.load(tmp_path / "run")
    assert loaded.record == saved.record == bundle.record.model_copy(update={"sha256": loaded.digest})
    assert loaded.tensors.keys() == bundle.tensors.keys()
    for name, value in bundle.tensors.items():
        assert loaded.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded.tensors[name], value)
    assert loaded.canary.images == bundle.canary.images
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [RECORD, TENSORS]


def test_a_transposed_view_is_stored_as_it_reads(bundle: Bundle, tmp_path: Path) -> None:
    weight = np.asarray(np.arange(6, dtype=np.float32).reshape(3, 2).T)
    turned = dataclasses.replace(bundle, tensors={**bundle.tensors, "head.weight": weight})
    turned.save(tmp_path)
    np.testing.assert_array_equal(Bundle.load(tmp_path).tensors["head.weight"], weight)


def test_digest_is_the_sha256_of_the_tensors_file(bundle: Bundle, tmp_path: Path) -> None:
    digest = bundle.save(tmp_path).digest
    assert digest == hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()
    assert json.loads((tmp_path / RECORD).read_text())["sha256"] == digest


def test_same_tensors_give_the_same_bytes_in_any_order(bundle: Bundle, tmp_path: Path) -> None:
    turned = dataclasses.replace(bundle, tensors=dict(reversed(bundle.tensors.items())))
    assert bundle.save(tmp_path / "a").digest == turned.save(tmp_path / "b").digest
    bundle.tensors["head.bias"][0] += 1
    assert bundle.save(tmp_path / "c").digest != turned.digest


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: old[:-1] + bytes([old[-1] ^ 1]), lambda _: b""])
def test_altered_and_truncated_tensors_are_refused(
    bundle: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    bundle.save(tmp_path)
    path = tmp_path / TENSORS
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(tmp_path) == f"{path} was altered or cut short since it was saved: copy the bundle again"


@pytest.mark.parametrize("name", [RECORD, TENSORS])
def test_a_missing_file_is_named(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path)
    (tmp_path / name).unlink()
    expected = f"{tmp_path / name}: No such file or directory; a bundle is adapter.safetensors with adapter.json"
    assert refusal(tmp_path) == expected


def test_all_wrong_names_and_shapes_are_listed_at_once(bundle: Bundle, tmp_path: Path) -> None:
    tensors = {**bundle.tensors, "extra": np.zeros(1), "head.bias": np.zeros(9)}
    del tensors["blocks.0.adapter.up.owner"]
    faults = "head.bias is (9,), not (2,); missing blocks.0.adapter.up.owner; unexpected extra"
    with pytest.raises(BundleError) as caught:
        dataclasses.replace(bundle, tensors=tensors).save(tmp_path)
    assert str(caught.value) == f"the tensors of 'toy' do not fit its record: {faults}"
    assert not list(tmp_path.iterdir())


def test_a_record_that_tells_of_other_tensors_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    edit(tmp_path, classes=["one", "two", "three"], form="merged")
    message = refusal(tmp_path)
    for fault in (
        "head.weight is (2, 3), not (3, 3)",
        "up.bias is (2, 3), not (3,)",
        "unexpected blocks.0.adapter.up.base",
    ):
        assert fault in message


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_at_saving_and_at_loading(
    bundle: Bundle, tmp_path: Path, odd: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "'toy' holds NaN or infinity in blocks.0.adapter.down.bias, head.bias: tune again with a lower --lr"
    for name in ("head.bias", "blocks.0.adapter.down.bias"):
        bundle.tensors[name][1] = odd
    with pytest.raises(BundleError, match=fault):
        bundle.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mosa_deploy.bundles.bundle.check_tensors", lambda *_: None)
        bundle.save(tmp_path)
    assert refusal(tmp_path) == fault


def test_a_pickle_under_the_tensors_name_is_refused_and_not_executed(bundle: Bundle, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    bundle.save(tmp_path)
    replace_tensors(tmp_path, pickle.dumps(Trap()))
    assert f"{tmp_path / TENSORS} is not a safetensors file" in refusal(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_number_format_without_numpy_equivalent_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    header = json.dumps({"head.bias": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    replace_tensors(tmp_path, struct.pack("<Q", len(header)) + header + bytes(4))
    assert "holds BF16, which numpy cannot read: save it as F32" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_a_record_that_is_no_json_object_is_refused(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    bundle.save(tmp_path)
    (tmp_path / RECORD).write_bytes(content)
    assert refusal(tmp_path) == f"{tmp_path / RECORD} is not a JSON object: copy the bundle again"


def test_all_bad_fields_of_a_record_are_named(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    edit(tmp_path, temperature=-1, task="../up", method="magic", seed=None, surprise=1)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / RECORD}: ")
    for field in ("temperature: ", "task: ", "method: ", "seed: ", "surprise: "):
        assert field in message


def test_adapter_settings_that_cannot_be_are_laid_to_the_record(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    edit(tmp_path, adapter={"bottleneck": 0, "experts": 999})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / RECORD}: adapter: ")
    assert "999: 1 to 256" in message


@pytest.mark.parametrize("failing", [".safetensors.", ".json."])
def test_a_full_disk_leaves_the_earlier_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    earlier = bundle.save(tmp_path)
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if failing in path.name:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(path, content)

    bundle.tensors["head.bias"][0] += 1
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"cannot be written: No space left on device; what was there is kept"):
        bundle.save(tmp_path)
    assert Bundle.load(tmp_path).digest == earlier.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, TENSORS]


STYLES: list[dict[str, Any]] = [
    {},
    {"style": "low-rank", "targets": ("q", "v")},
    {"style": "low-rank", "targets": ("fc2", "qkv", "proj", "fc1")},
    {"style": "pfeiffer", "scale": 1.0},
    {"style": "houlsby", "scale": 1.0},
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("share", ["down", "up", "none"])
@pytest.mark.parametrize("form", ["split", "merged"])
def test_expected_shapes_are_those_of_the_torch_model(
    bundle: Bundle, toy: Callable[..., VisionTransformer], share: Share, form: str, style: dict[str, Any]
) -> None:
    config = AdapterConfig(bottleneck=5, experts=3, share=share, **style)
    state = task_state(attach(toy(num_classes=2), config, split=form == "split"))
    backbone = bundle.record.backbone.model_copy(update={"depth": 2, "embed_dim": 12, "hidden": 48})
    record = bundle.record.model_copy(update={"adapter": config, "form": form, "backbone": backbone})
    assert expected_shapes(record) == {name: tuple(value.shape) for name, value in state.items()}


def test_a_task_of_biases_holds_no_other_parameter_of_the_backbone(bundle: Bundle, tmp_path: Path) -> None:
    record = bundle.record.model_copy(update={"adapter": None, "method": "bitfit", "form": "merged"})
    tensors = {name: value for name, value in bundle.tensors.items() if name.startswith("head.")}
    biases = {"blocks.0.norm1.bias": np.ones(3, np.float32)}
    Bundle(record, tensors | biases, bundle.canary).save(tmp_path)
    assert Bundle.load(tmp_path).tensors.keys() == {"blocks.0.norm1.bias", "head.weight", "head.bias"}
    more = {"blocks.0.norm1.weight": np.ones(3, np.float32)}
    with pytest.raises(BundleError, match=r"do not fit its record: unexpected blocks\.0\.norm1\.weight$"):
        Bundle(record, tensors | biases | more, bundle.canary).save(tmp_path)


def test_a_linear_probe_is_a_head_alone(bundle: Bundle, tmp_path: Path) -> None:
    record = bundle.record.model_copy(update={"adapter": None, "method": "linear", "form": "merged"})
    tensors = {name: value for name, value in bundle.tensors.items() if name.startswith("head.")}
    Bundle(record, tensors, bundle.canary).save(tmp_path)
    assert Bundle.load(tmp_path).tensors.keys() == {"head.weight", "head.bias"}


def test_a_record_of_another_style_is_read_as_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    config = AdapterConfig(bottleneck=2, experts=2, style="low-rank", targets=("q", "fc1"))
    backbone = bundle.record.backbone.model_copy(update={"hidden": 12})
    record = bundle.record.model_copy(update={"adapter": config, "backbone": backbone, "form": "merged"})
    tensors: dict[str, NDArray[np.generic]] = {
        name: np.ones(shape, np.float32) for name, shape in expected_shapes(record).items()
    }
    Bundle(record, tensors, bundle.canary).save(tmp_path)
    assert Bundle.load(tmp_path).record.adapter == config
    edit(tmp_path, backbone={**backbone.model_dump(), "hidden": None})
    assert "'toy' updates mlp.fc1, but its record lacks backbone.hidden: convert it again" in refusal(tmp_path)


def test_a_record_is_read_without_its_tensors(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    (tmp_path / TENSORS).unlink()
    assert read_record(tmp_path).classes == ("río", "sea")
    assert read_record(tmp_path).backbone.folder == "vit_toy-abababab"
