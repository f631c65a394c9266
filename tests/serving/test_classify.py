import io
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from scipy.special import softmax
from timm.data import create_transform, resolve_model_data_config

from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from tests.support.app import Classify, backend_of, named, running, scores
from tests.support.tasks import TaskMaker, picture

TASKS = ("birds", "fields")


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


@pytest.mark.parametrize("task", TASKS)
def test_a_task_answers_with_its_own_bundle_and_labels(
    ask: Classify, archives: Mapping[str, Archive], task: str
) -> None:
    answer = ask(picture(), task, top_k="999").json()
    bundle = archives[task].bundle()
    assert answer["task"] == task
    assert answer["bundle"] == bundle.digest
    assert {entry["label"] for entry in answer["predictions"]} == set(bundle.record.classes)
    assert answer["milliseconds"] > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_scores_are_those_of_the_torch_model_behind_timm_s_own_transform(
    ask: Classify, archives: Mapping[str, Archive], task: str, kind: str
) -> None:
    bundle = archives[task].bundle()
    model = restore(bundle).double()
    content = picture(1, kind=kind)
    pixels = create_transform(**resolve_model_data_config(model))(Image.open(io.BytesIO(content)))
    with torch.inference_mode():
        logits = model(pixels[None].double())[0].numpy()
    wanted = named(archives[task], softmax(logits / bundle.record.temperature).astype(np.float32))
    assert scores(ask(content, task, top_k="99")) == pytest.approx(wanted, abs=1e-4)
    assert max(wanted.values()) - min(wanted.values()) > 0.01


@pytest.mark.parametrize("lane", ["shared", "folded"])
def test_both_lanes_give_the_reference_s_probabilities(
    maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, Array], lane: str
) -> None:
    with running(maker.root, folded="*" if lane == "folded" else "") as client:
        for task, archive in archives.items():
            assert client.get(f"/v1/tasks/{task}").json()["lane"] == lane
            for image, row in zip(maker.images, offline[task], strict=True):
                answer = client.post("/classify", files={"image": image}, data={"task": task, "top_k": "99"})
                assert scores(answer) == pytest.approx(named(archive, row), abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_all_classes_sum_to_one_and_descend(ask: Classify, task: str) -> None:
    given = list(scores(ask(picture(2), task, top_k="99")).values())
    assert sum(given) == pytest.approx(1, abs=1e-5)
    assert given == sorted(given, reverse=True)


@pytest.mark.parametrize(("form", "count"), [({}, 5), ({"top_k": "1"}, 1), ({"top_k": "3"}, 3), ({"top_k": "50"}, 32)])
def test_as_many_classes_are_answered_as_asked_for(ask: Classify, form: dict[str, str], count: int) -> None:
    everything = scores(ask(picture(), "birds", top_k="32"))
    assert list(scores(ask(picture(), "birds", **form)).items()) == list(everything.items())[:count]


def test_alternating_tasks_never_mix(ask: Classify, maker: TaskMaker, offline: Mapping[str, Array]) -> None:
    for i, image in enumerate(maker.images):
        for task, rows in offline.items():
            (label,) = scores(ask(image, task, top_k="1"))
            assert label == f"class-{rows[i].argmax()}"


def test_several_images_are_answered_in_their_order_each_by_its_task(
    client: TestClient, maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, Array]
) -> None:
    tasks = ["birds", "fields", "cracks", "birds"]
    files = [("image", (f"{i}.png", maker.images[i])) for i in range(4)]
    answer = client.post("/classify", files=files, data={"task": tasks, "top_k": "99"}).json()["results"]
    for i, (task, each) in enumerate(zip(tasks, answer, strict=True)):
        assert each["bundle"] == archives[task].bundle().digest
        given = {entry["label"]: entry["score"] for entry in each["predictions"]}
        assert given == pytest.approx(named(archives[task], offline[task][i]), abs=1e-5)


def test_one_task_may_answer_all_images_and_one_image_all_tasks(client: TestClient, maker: TaskMaker) -> None:
    files = [("image", (f"{i}.png", maker.images[i])) for i in range(3)]
    by_one = client.post("/classify", files=files, data={"task": "birds"}).json()["results"]
    assert [each["predictions"][0]["label"] for each in by_one] == ["class-0", "class-1", "class-2"]
    by_all = client.post("/classify", files=files[:1], data={"tasks": "birds, cracks,fields"}).json()["results"]
    assert [(each["task"], each["predictions"][0]["label"]) for each in by_all] == [
        ("birds", "class-0"),
        ("cracks", "class-1"),
        ("fields", "class-2"),
    ]


def test_linear_tasks_share_one_pass_for_an_image(client: TestClient, maker: TaskMaker) -> None:
    sizes: list[int] = []
    batcher = backend_of(client).batcher
    before, batcher.observe = batcher.observe, lambda items: sizes.append(len(items))
    try:
        answer = client.post("/classify", files={"image": maker.images[5]}, data={"tasks": "fields,fields.b,birds"})
    finally:
        batcher.observe = before
    assert [each["predictions"][0]["label"] for each in answer.json()["results"]] == ["class-7", "class-8", "class-5"]
    assert sum(sizes) == 2


def test_one_bad_image_or_task_fails_alone_with_the_status_that_it_would_have_had(client: TestClient) -> None:
    good, half = picture(), picture()[:300]
    files = [("image", (name, content)) for name, content in (("a", good), ("b", b"text"), ("c", half), ("d", good))]
    data = {"task": ["birds", "birds", "birds", "dogs"]}
    results = client.post("/classify", files=files, data=data).json()["results"]
    assert [each.get("status", 200) for each in results] == [200, 415, 400, 404]
    assert results[1]["detail"].startswith("b: not an image of a known type")
    assert results[2]["detail"].startswith("c: not a readable image")


@pytest.mark.parametrize("task", ["429", "007", "X", "%2e/../?"])
def test_an_unknown_task_is_named_as_it_was_sent_with_the_known_ones(ask: Classify, task: str) -> None:
    response = ask(picture(), task)
    assert response.status_code == 404
    assert response.json() == {"detail": f"unknown task '{task}'; known: birds, cracks, fields, fields.b, grains"}


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"just text", 415, "some.png: not an image of a known type"),
        (b"", 415, "some.png: the image is empty, 0 bytes"),
        (b"GIF89a", 415, "some.png: not an image of a known type"),
        (picture()[:200], 400, "some.png: not a readable image (OSError)"),
        (picture(kind="jpeg")[:300], 400, "some.png: not a readable image (OSError)"),
        (picture()[:30] + bytes(500), 415, "some.png: not an image of a known type"),
    ],
    ids=["text", "empty", "GIF's first bytes", "half a PNG", "a JPEG's head", "PNG of zeros"],
)
def test_a_file_that_is_no_image_is_the_sender_s_fault_in_one_line(
    ask: Classify, content: bytes, status: int, detail: str
) -> None:
    response = ask(content, "birds")
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail)
    assert response.json()["detail"].endswith(" a PNG, JPEG or WebP file")
    assert "\n" not in response.json()["detail"]


def test_a_url_in_place_of_a_file_is_refused_and_never_fetched(
    client: TestClient, heard: tuple[str, list[str]]
) -> None:
    url, requests = heard
    assert client.post("/classify", data={"task": "birds", "image": url}).status_code == 422
    assert client.post("/classify", json={"task": "birds", "image": url}).status_code == 422
    in_file = client.post("/classify", data={"task": "birds"}, files={"image": ("u", url.encode())})
    assert in_file.status_code == 415
    assert requests == []


@pytest.mark.parametrize(
    ("form", "files", "missing"),
    [
        ({"task": "birds"}, {}, "image"),
        ({"task": "birds", "top_k": "0"}, {"image": ("a", picture())}, "top_k"),
        ({"task": "birds", "top_k": "many"}, {"image": ("a", picture())}, "top_k"),
    ],
)
def test_a_field_that_is_missing_or_impossible_is_named(
    client: TestClient, form: dict[str, str], files: dict[str, tuple[str, bytes]], missing: str
) -> None:
    response = client.post("/classify", data=form, files=files)
    assert response.status_code == 422
    assert missing in str(response.json()["detail"])


@pytest.mark.parametrize("form", [{}, {"task": ["birds"], "tasks": "birds"}, {"task": ["birds", "cracks"]}])
def test_what_cannot_be_told_apart_is_refused(client: TestClient, form: dict[str, object]) -> None:
    response = client.post("/classify", data=form, files={"image": ("a", picture())})
    assert response.status_code == 422
    assert "`task`" in response.json()["detail"]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_an_image_of_another_mode_answers_as_its_rgb_twin(ask: Classify, mode: str) -> None:
    content, twin = picture(3, mode), io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(twin, format="png")
    assert scores(ask(content, "birds")) == scores(ask(twin.getvalue(), "birds"))


def test_a_photo_that_lies_on_its_side_is_read_upright(ask: Classify) -> None:
    upright = Image.open(io.BytesIO(picture(4)))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    turned.save(files[0], format="png")
    turned.save(files[1], format="png", exif=exif)
    plain, tagged = (scores(ask(file.getvalue(), "birds")) for file in files)
    assert tagged == scores(ask(picture(4), "birds"))
    assert plain != tagged


def test_the_list_of_tasks_says_what_each_is(
    client: TestClient, maker: TaskMaker, archives: Mapping[str, Archive]
) -> None:
    listed = client.get("/v1/tasks").json()["tasks"]
    assert [(entry["task"], entry["method"], len(entry["classes"])) for entry in listed] == [
        ("birds", "mosa", 32),
        ("cracks", "mosa", 32),
        ("fields", "linear", 32),
        ("fields.b", "linear", 32),
        ("grains", "lora", 32),
    ]
    assert [entry["bundle"] for entry in listed] == [archives[entry["task"]].bundle().digest for entry in listed]
    assert {entry["backbone"] for entry in listed} == {maker.backbone.folder}
    assert {(entry["state"], entry["lane"]) for entry in listed} == {("active", "shared")}
    assert client.get("/v1/tasks/birds").json() == listed[0]


def test_the_api_s_description_names_every_fault_of_a_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/classify"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "404", "408", "413", "415", "422", "503", "504"}
    # What the guard may say of any request.
    for path, methods in document["paths"].items():
        for verb, method in methods.items():
            assert set(method["responses"]) >= {"400", "401", "408", "413", "415", "503", "504"}
            if verb != "get" and path not in ("/classify", "/v1/embed"):
                assert set(method["responses"]) >= {"403", "404", "409", "422"}
    for status in set(responses) - {"200"}:
        assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Fault")
    bodies = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json", "image/*", "application/octet-stream"}
    assert bodies["multipart/form-data"]["schema"]["required"] == ["image"]
    properties = bodies["multipart/form-data"]["schema"]["properties"]
    assert set(properties) == {"image", "task", "tasks", "top_k", "threshold", "unknown", "abstain"}
    assert {name for name, model in document["components"]["schemas"].items() if "example" in model} >= {
        "Answer",
        "Answers",
        "Fault",
        "Task",
        "Tasks",
    }
