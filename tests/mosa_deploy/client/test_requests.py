import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.client import requests
from mosa_deploy.errors import BundleError, DataError

AsPath = Callable[[Path], str | Path]
either = pytest.mark.parametrize("as_path", [str, Path])


@either
def test_an_image_given_by_its_path_is_sent_as_the_file(tmp_path: Path, as_path: AsPath) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"the image")
    request = requests.classify(as_path(tmp_path / "photo.jpg"), "digits", 3)
    assert request.options == {
        "files": [("image", ("photo.jpg", b"the image"))],
        "data": {"task": "digits", "top_k": 3},
    }


def test_an_image_given_by_its_bytes_is_sent_as_it_is() -> None:
    request = requests.classify_by(b"the image", ["digits", "birds"], 3)
    assert request.options == {
        "files": [("image", ("image", b"the image"))],
        "data": {"tasks": "digits,birds", "top_k": 3},
    }


@either
def test_a_missing_image_is_named_in_one_line(tmp_path: Path, as_path: AsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^photos/nowhere\.jpg: No such file or directory$"):
        requests.classify(as_path(Path("photos/nowhere.jpg")), "digits", 3)


def test_a_folder_in_the_place_of_an_image_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}: Is a directory$"):
        requests.classify(str(tmp_path), "digits", 3)


def test_images_are_sent_in_batches_with_their_own_tasks() -> None:
    pairs = [(b"0", "digits"), (b"1", "birds"), (b"2", "birds"), (b"3", "digits")]
    made = list(requests.classify_many(pairs, 3, batch=2))
    assert [request.options["data"]["task"] for request in made] == [("digits", "birds"), ("birds", "digits")]
    sent = [[content for _, (_, content) in request.options["files"]] for request in made]
    assert sent == [[b"0", b"1"], [b"2", b"3"]]


def test_a_lone_last_image_asks_for_a_list_of_results_too() -> None:
    *_, last = requests.classify_many([(b"0", "digits"), (b"1", "birds"), (b"2", "birds")], 3, batch=2)
    assert last.options["data"] == {"tasks": "birds", "top_k": 3}


@either
def test_a_bundle_s_folder_is_sent_as_a_mosa_file(bundle: Bundle, tmp_path: Path, as_path: AsPath) -> None:
    bundle.save(tmp_path)
    content = requests.put("toy", as_path(tmp_path), False, None).options["content"]
    with zipfile.ZipFile(BytesIO(content)) as archive:
        sent = {name: archive.read(name) for name in archive.namelist()}
    assert sent == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@either
def test_a_mosa_file_is_sent_as_it_is(tmp_path: Path, as_path: AsPath) -> None:
    (tmp_path / "toy.mosa").write_bytes(b"a zip")
    request = requests.put("toy", as_path(tmp_path / "toy.mosa"), True, "folded")
    assert request.options == {"content": b"a zip", "params": {"new_classes": True, "lane": "folded"}}


def test_a_missing_mosa_file_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/toy\.mosa: No such file or directory$"):
        requests.put("toy", str(tmp_path / "toy.mosa"), False, None)


def test_a_folder_without_a_bundle_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"adapter\.json"):
        requests.put("toy", str(tmp_path), False, None)


def test_a_task_s_name_stays_one_part_of_the_path() -> None:
    assert requests.pin("../a?b", True).path == "/v1/tasks/..%2Fa%3Fb/pin"


def test_a_margin_of_nothing_is_sent_and_not_taken_for_none() -> None:
    request = requests.put("digits", b"bundle", False, None, margin=0.0)
    assert request.options["params"] == {"new_classes": False, "margin": 0.0}


def test_what_else_answers_should_hold_is_sent_if_it_is_asked_for() -> None:
    asked = requests.classify(b"the image", "digits", 3, unknown=True, abstain=0.0)
    assert asked.options["data"] == {"task": "digits", "top_k": 3, "unknown": True, "abstain": 0.0}
    plain = requests.classify(b"the image", "digits", 3, unknown=False, abstain=None)
    assert plain.options["data"] == {"task": "digits", "top_k": 3}


def test_features_are_asked_for_in_batches_whose_last_image_may_be_alone() -> None:
    first, last = requests.embed_many([b"0", b"1", b"2"], "digits", None, normalise=True, batch=2)
    assert [content for _, (_, content) in first.options["files"]] == [b"0", b"1"]
    assert first.options["data"] == {"task": "digits", "normalise": True}
    assert last.options == {"json": {"images": ["data:;base64,Mg=="], "task": "digits", "normalise": True}}
