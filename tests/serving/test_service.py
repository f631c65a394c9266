import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from scipy.special import softmax
from timm.data import create_transform, resolve_model_data_config

from mosa_deploy.bundle import Bundle
from mosa_deploy.restore import restore
from tests.serving.conftest import Ask, picture, scores

TASKS = ("digits", "sprites-location")


@pytest.fixture
def heard() -> Iterator[tuple[str, list[str]]]:
    """A local server's address, and the requests that it gets."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cat.png", requests
        server.shutdown()
        thread.join(timeout=10)


@pytest.mark.parametrize(("task", "count"), [("digits", 10), ("sprites-location", 16)])
def test_a_task_answers_with_its_own_bundle_and_labels(ask: Ask, store: Path, task: str, count: int) -> None:
    answer = ask(picture(), task, top_k="999").json()
    bundle = Bundle.load(store / "tasks" / task)
    assert answer["task"] == task
    assert answer["bundle"] == bundle.digest
    assert {entry["label"] for entry in answer["predictions"]} == set(bundle.record.classes)
    assert len(answer["predictions"]) == count
    assert answer["milliseconds"] > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_scores_are_those_of_the_tuned_model_behind_timm_s_own_transform(
    ask: Ask, digits_run: Path, sprites_run: Path, task: str, kind: str
) -> None:
    bundle = Bundle.load(digits_run if task == "digits" else sprites_run)
    model = restore(bundle).double()
    content = picture(1, kind=kind)
    pixels = create_transform(**resolve_model_data_config(model))(Image.open(io.BytesIO(content)))
    with torch.inference_mode():
        logits = model(pixels[None].double())[0].numpy()
    wanted = dict(zip(bundle.record.classes, softmax(logits / bundle.record.temperature), strict=True))
    assert scores(ask(content, task, top_k="99")) == pytest.approx(wanted, abs=1e-4)
    assert max(wanted.values()) - min(wanted.values()) > 0.01


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_all_classes_sum_to_one_and_descend(ask: Ask, task: str) -> None:
    given = list(scores(ask(picture(2), task, top_k="99")).values())
    assert sum(given) == pytest.approx(1, abs=1e-5)
    assert given == sorted(given, reverse=True)


@pytest.mark.parametrize(("form", "count"), [({}, 5), ({"top_k": "1"}, 1), ({"top_k": "3"}, 3), ({"top_k": "50"}, 10)])
def test_as_many_classes_are_answered_as_asked_for(ask: Ask, form: dict[str, str], count: int) -> None:
    everything = scores(ask(picture(), "digits", top_k="10"))
    assert list(scores(ask(picture(), "digits", **form)).items()) == list(everything.items())[:count]


def test_alternating_tasks_never_mix(ask: Ask) -> None:
    alone = {(task, seed): scores(ask(picture(seed), task)) for task in TASKS for seed in range(4)}
    assert len({str(answer) for answer in alone.values()}) == 8
    for seed in (0, 1, 2, 3) * 2:
        for task in TASKS:
            assert scores(ask(picture(seed), task)) == pytest.approx(alone[task, seed], abs=1e-6)


@pytest.mark.parametrize("task", ["429", "007", "Digits", "digits/../digits"])
def test_an_unknown_task_is_named_as_it_was_sent_with_the_known_ones(ask: Ask, task: str) -> None:
    response = ask(picture(), task)
    assert response.status_code == 404
    assert response.json() == {"detail": f"unknown task '{task}'; known: digits, sprites-location"}


@pytest.mark.parametrize(
    "content",
    [b"just text", b"", picture()[:200], picture(kind="jpeg")[:300], b"GIF89a", picture()[:30] + bytes(500)],
    ids=["text", "empty", "half a PNG", "half a JPEG", "GIF's first bytes", "PNG of zeros"],
)
def test_a_file_that_is_no_image_is_the_sender_s_fault_in_one_line(ask: Ask, content: bytes) -> None:
    response = ask(content, "digits")
    assert response.status_code == 400
    detail = response.json()["detail"]
    assert detail.startswith("some.png: not a readable image (")
    assert detail.endswith("send a PNG, JPEG or WebP file")
    assert "\n" not in detail


def test_a_url_in_place_of_a_file_is_refused_and_never_fetched(
    client: TestClient, heard: tuple[str, list[str]]
) -> None:
    url, requests = heard
    assert client.post("/classify", data={"task": "digits", "image": url}).status_code == 422
    assert client.post("/classify", json={"task": "digits", "image": url}).status_code == 422
    in_file = client.post("/classify", data={"task": "digits"}, files={"image": ("u", url.encode())})
    assert in_file.status_code == 400
    assert requests == []


@pytest.mark.parametrize(
    ("form", "files", "missing"),
    [
        ({}, {"image": ("a.png", picture())}, "task"),
        ({"task": "digits"}, {}, "image"),
        ({"task": "digits", "top_k": "0"}, {"image": ("a.png", picture())}, "top_k"),
        ({"task": "digits", "top_k": "few"}, {"image": ("a.png", picture())}, "top_k"),
    ],
)
def test_a_field_that_is_missing_or_impossible_is_named(
    client: TestClient, form: dict[str, str], files: dict[str, tuple[str, bytes]], missing: str
) -> None:
    response = client.post("/classify", data=form, files=files)
    assert response.status_code == 422
    assert [fault["loc"] for fault in response.json()["detail"]] == [["body", missing]]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_an_image_of_another_mode_answers_as_its_rgb_twin(ask: Ask, mode: str) -> None:
    content, twin = picture(3, mode), io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(twin, format="png")
    assert scores(ask(content, "digits")) == scores(ask(twin.getvalue(), "digits"))


def test_a_photo_that_lies_on_its_side_is_read_upright(ask: Ask) -> None:
    upright = Image.open(io.BytesIO(picture(4)))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    turned.save(files[0], format="png")
    turned.save(files[1], format="png", exif=exif)
    plain, tagged = (scores(ask(file.getvalue(), "digits")) for file in files)
    assert tagged == scores(ask(picture(4), "digits"))
    assert plain != tagged


def test_the_list_of_tasks_says_what_each_is(client: TestClient, store: Path) -> None:
    listed = client.get("/v1/tasks").json()["tasks"]
    assert [(entry["task"], entry["method"], len(entry["classes"])) for entry in listed] == [
        ("digits", "mosa", 10),
        ("sprites-location", "linear", 16),
    ]
    assert {entry["bundle"] for entry in listed} == {Bundle.load(store / "tasks" / task).digest for task in TASKS}
    (folder,) = (store / "backbones").iterdir()
    assert {entry["backbone"] for entry in listed} == {folder.name}


def test_the_api_s_description_names_every_fault_of_a_request(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/classify"]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "422", "503"}
    for status in ("400", "404", "503"):
        assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Fault")
    form = document["paths"]["/classify"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"]
    schema = document["components"]["schemas"][form.rpartition("/")[2]]
    assert schema["required"] == ["image", "task"]
    assert set(schema["properties"]) == {"image", "task", "top_k"}
