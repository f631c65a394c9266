"""A head without its backbone, from torch or scikit-learn: it answers as its own library does, or is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from export.convert import convert
from export.heads import HeadAlone, read_head_alone
from export.options import ConvertConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import BackboneError
from tests.support.peft_models import NAME

WIDTH = 64
NEAR = 1e-5

Arrays = dict[str, NDArray[Any]]


def features() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (3 + 5 * rng.standard_normal((60, WIDTH))).astype(np.float32)


def fitted(classes: int, **settings: Any) -> LogisticRegression:
    labels = np.array(["soil", "weed", "wheat"])[np.arange(60) % classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(max_iter=30, **settings).fit(features(), labels)


def attributes(model: Any) -> Arrays:
    return {"coef_": model.coef_, "intercept_": model.intercept_, "classes_": model.classes_.astype(str)}


def as_npz(file: Path, arrays: Arrays) -> Path:
    np.savez(file.with_suffix(".npz"), allow_pickle=False, **arrays)
    return file.with_suffix(".npz")


def as_json(file: Path, arrays: Arrays) -> Path:
    file.with_suffix(".json").write_text(json.dumps({name: value.tolist() for name, value in arrays.items()}))
    return file.with_suffix(".json")


def as_safetensors(file: Path, arrays: Arrays) -> Path:
    numbers = {name: np.ascontiguousarray(value) for name, value in arrays.items() if value.dtype.kind == "f"}
    save_file(numbers, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def read(path: Path, width: int = WIDTH) -> HeadAlone:
    head = read_head_alone(path, width, "--from timm")
    assert head is not None
    return head


def refusal(path: Path, width: int = WIDTH) -> str:
    with pytest.raises(BackboneError) as caught:
        read_head_alone(path, width, "--from timm")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def probabilities(head: HeadAlone) -> NDArray[np.float32]:
    logits = torch.from_numpy(features()) @ head.tensors["head.weight"].T + head.tensors["head.bias"]
    return logits.softmax(-1).numpy()


@pytest.mark.parametrize("save", [as_npz, as_json, as_safetensors])
@pytest.mark.parametrize("settings", [{}, {"fit_intercept": False}])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_regression_keeps_its_probabilities(
    tmp_path: Path, classes: int, settings: dict[str, Any], save: Callable[[Path, Arrays], Path]
) -> None:
    model = fitted(classes, **settings)
    head = read(save(tmp_path / "w", attributes(model)))
    np.testing.assert_allclose(probabilities(head), model.predict_proba(features()), rtol=0, atol=NEAR)
    if save is as_safetensors:
        assert "if coef_ was not saved with np.ascontiguousarray, it is scrambled" in head.notes[-1]
    else:
        assert head.classes == ("soil", "weed", "wheat")[:classes]


def test_class_names_that_were_saved_as_bytes_are_their_characters(tmp_path: Path) -> None:
    arrays = attributes(fitted(3))
    arrays["classes_"] = arrays["classes_"].astype(bytes)
    assert read(as_npz(tmp_path / "head", arrays)).classes == ("soil", "weed", "wheat")


def test_a_scaler_before_it_is_absorbed(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=30)).fit(features(), labels)
    scaler, model = pipeline[0], pipeline[-1]
    path = as_npz(tmp_path / "w", attributes(model) | {"mean_": scaler.mean_, "scale_": scaler.scale_})
    np.testing.assert_allclose(probabilities(read(path)), pipeline.predict_proba(features()), rtol=0, atol=NEAR)
    without = as_npz(tmp_path / "v", attributes(model))
    assert np.abs(probabilities(read(without)) - pipeline.predict_proba(features())).max() > 0.1


@pytest.mark.parametrize(
    "prefix", ["", "head.", "fc.", "classifier.", "linear.", "module.linear.", "model.head.1.", "state_dict.fc."]
)
def test_a_linear_layer_of_torch_is_read_under_any_name(tmp_path: Path, prefix: str) -> None:
    layer = nn.Linear(WIDTH, 3)
    state = {f"{prefix}{name}": value for name, value in layer.state_dict().items()}
    torch.save({"state_dict": state, "best_acc": np.float64(0.9)}, tmp_path / "w.pth")
    head = read(tmp_path / "w.pth").tensors
    assert torch.equal(head["head.weight"], layer.weight)
    assert torch.equal(head["head.bias"], layer.bias)


def test_a_layer_without_bias_is_said_to_have_zeros(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(3, WIDTH)}, tmp_path / "w.pth")
    head = read(tmp_path / "w.pth")
    assert torch.equal(head.tensors["head.bias"], torch.zeros(3))
    assert head.notes == ("fc has no bias: zeros are taken",)


def test_a_head_on_other_features_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2 * WIDTH, 3).state_dict(), tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth") == (
        f"--from timm {tmp_path}/w.pth is a head that reads 128 values, such as the class token and the mean of the"
        " patches together, the backbone gives 64: give the backbone whose features it was fitted on"
    )


def test_a_head_that_lies_transposed_or_under_other_names_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(WIDTH, 3), "bias": torch.ones(3)}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").endswith("has a weight of 64 x 3, (C, K): save its transpose, (K, C)")
    torch.save({"W": torch.ones(3, WIDTH), "b": torch.ones(3)}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").endswith("no linear head (W, b): name its tensors weight (K, C) and bias (K,)")


def test_a_head_of_several_layers_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), tmp_path / "w.pth")
    assert "(0.weight, 0.bias, 2.weight, 2.bias): a bundle's head is one linear layer" in refusal(tmp_path / "w.pth")


def test_one_row_of_votes_for_each_pair_of_classes_is_refused(tmp_path: Path) -> None:
    """As a linear SVC of scikit-learn has it for four classes: six rows."""
    arrays: Arrays = {"coef_": np.ones((6, WIDTH)), "intercept_": np.ones(6), "classes_": np.arange(4)}
    assert refusal(as_npz(tmp_path / "w", arrays)).endswith(
        "has 4 classes_ for 6 rows of coefficients: only classifiers with one row for each class can be kept, such as"
        " LogisticRegression"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"components_": np.ones((2, WIDTH))}, "holds components_, which cannot be kept: fit it on the features"),
        ({"scale_": np.ones(3)}, "holds arrays that do not fit each other: coef_ (3, 64), scale_ (3,); save it again"),
        ({"intercept_": np.ones(2)}, "holds arrays that do not fit each other: coef_ (3, 64), intercept_ (2,)"),
    ],
)
def test_attributes_that_would_change_the_answer_are_not_left_out(tmp_path: Path, more: Arrays, said: str) -> None:
    assert said in refusal(as_npz(tmp_path / "w", {"coef_": np.ones((3, WIDTH))} | more))


def test_the_command_for_a_pickle_of_scikit_learn_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(3)
    monkeypatch.chdir(tmp_path)
    joblib.dump(model, "head.joblib")
    said, _, line = refusal(Path("head.joblib")).partition(" that you trust, run: ")
    assert said.endswith("is a pickle, which may run code when it is read: if it is a classifier of scikit-learn")
    exec(line.removeprefix('python -c "').partition('"; else')[0], {})
    head = read(Path("head.npz"))
    np.testing.assert_allclose(probabilities(head), model.predict_proba(features()), rtol=0, atol=NEAR)


def test_names_that_were_saved_as_objects_are_refused_with_the_way_to_save_text(tmp_path: Path) -> None:
    arrays = {**attributes(fitted(3)), "classes_": np.array(["soil", "weed", "wheat"], dtype=object)}
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type] # numpy has an option of that type
    assert refusal(tmp_path / "w.npz").endswith(
        "w.npz holds pickled objects: save text with classes_=model.classes_.astype(str)"
    )


def test_it_becomes_a_linear_task_with_its_class_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_json(tmp_path / "w", attributes(fitted(2)))
    given = ConvertConfig(path, "timm", "parts", NAME, random_weights=True, out=tmp_path / "run")
    record = Bundle.load(convert(given)).record
    assert (record.method, record.classes) == ("linear", ("soil", "weed"))
    assert "coef_ is read as one row of a sigmoid, as LogisticRegression does" in capsys.readouterr().out
