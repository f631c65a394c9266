"""Requests that are not understood: each is refused by what is wrong with it, and none of it is ignored."""

import gzip
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from tests.support.app import changing
from tests.support.requests import BASE64, FORM, JPEG, JSON, PHOTO, refusal
from tests.support.tasks import TaskMaker


@pytest.fixture(scope="module")
def keeper(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """The service on a store of its own, by one who may change it but is always refused."""
    with changing(shutil.copytree(maker.root, tmp_path_factory.mktemp("kept") / "store")) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"topk": "3"}, 422, "unknown field 'topk'; did you mean top_k or task?"),
        ({"Task": "birds"}, 422, "unknown field 'Task'; did you mean task"),
        (
            {"model": "birds"},
            422,
            "unknown field 'model'; known: abstain, image, task, tasks, threshold, top_k",
        ),
        (
            {"top_k": "abc"},
            422,
            "top_k: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({"top_k": "0"}, 422, "top_k: Input should be greater than or equal to 1, not '0'"),
        ({"top_k": ["1", "2"]}, 422, "`top_k` is there 2 times: send it once"),
        ({"tasks": " , "}, 422, "`tasks` is empty: name the tasks, between commas"),
        ({"task": ""}, 422, "`task` is empty: send the name of a task"),
        ({"task": "birds,cracks"}, 422, "`task` is one name, and 'birds,cracks' has a comma: send several as `tasks`"),
        ({}, 422, "send `task`, once or for each image, or `tasks=a,b` for several tasks of every image"),
    ],
)
def test_a_form_s_field_is_never_ignored(
    client: TestClient, fields: Mapping[str, Any], status: int, reason: str
) -> None:
    complete = fields if {"task", "tasks"} & set(fields) or not fields else {"task": "birds", **fields}
    response = client.post("/classify", files={"image": PHOTO}, data=complete)
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)
    assert response.json()["detail"].endswith(f"; this works: {FORM}")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"topk": 3}, 422, "unknown field 'topk'; did you mean top_k or task?"),
        ({"instances": [{"b64": BASE64}]}, 422, "unknown field 'instances'; did you mean images"),
        ({"inputs": [{"name": "image", "data": [1, 2]}]}, 422, "unknown field 'inputs'"),
        ({"image": [[[0, 0, 0]]], "task": "birds"}, 422, "image: Input should be a valid string"),
        ({"image": {"b64": BASE64}, "task": "birds"}, 422, "image: Input should be a valid string"),
        ({"image": BASE64, "task": "birds", "top_k": "3"}, 422, "top_k: Input should be a valid integer"),
        ({"image": BASE64, "images": [BASE64], "task": "birds"}, 422, "`image` and `images` are both there"),
        ({"image": BASE64}, 422, "send `task`, once or for each image"),
        ({"task": "birds"}, 422, "`image` is missing: send one image at least"),
        ({"images": [], "task": "birds"}, 422, "images: the list should have at least 1 item"),
        ({"images": BASE64, "task": "birds"}, 422, "images: Input should be a valid list"),
        ({"image": BASE64, "task": 5}, 422, "task: Input should be a valid string; task: Input should be a valid list"),
        ({"image": "", "task": "birds"}, 422, "`image` is empty"),
        (
            {"image": "http://127.0.0.1/cat.png", "task": "birds"},
            422,
            "`image` is a URL, and the service fetches nothing",
        ),
        ({"image": "s3://bucket/cat.png", "task": "birds"}, 422, "`image` is a URL, and the service fetches"),
        ({"image": "photo.jpg", "task": "birds"}, 422, "`image` is the text 'photo.jpg', neither a file nor base64"),
        ({"image": str(b64encode(PHOTO)), "task": "birds"}, 422, "`image` is bytes as Python prints them"),
        ({"image": "data:image/svg+xml,<svg/>", "task": "birds"}, 422, "`image` is a data: URL without base64"),
        (
            {"image": BASE64[:1500] + "*" + BASE64, "task": "birds"},
            422,
            "`image` is not base64: it has '*' as character",
        ),
        (
            {"image": BASE64[:4001], "task": "birds"},
            422,
            "`image` is not base64: its 4001 characters are no",
        ),
        ({"image": BASE64[:4000], "task": "birds"}, 400, "image: not a readable image"),
        ([BASE64], 422, "the JSON is a list, not an object"),
        ({"image": BASE64, "tasks": ["\ud800"]}, 422, "'\\ud800' has half a character"),
    ],
)
def test_json_that_is_not_understood_is_named(client: TestClient, body: object, status: int, reason: str) -> None:
    response = client.post("/classify", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)
    assert response.json()["detail"].endswith(f"; this works: {JSON}") == (status == 422)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"image": ', "the body is not JSON: Expecting value"),
        (b"", "the body is not JSON: Expecting value"),
        (b"\xff\xfe\x00", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"task": "birds", "task": "cracks"}', "`task` is there twice: send it once"),
        (JPEG, "the body is an image, but its Content-Type says JSON: send image/jpeg"),
    ],
    ids=["half", "empty", "no text", "deep", "twice", "an image"],
)
def test_a_body_that_is_no_json_is_named(client: TestClient, body: bytes, reason: str) -> None:
    response = client.post("/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["detail"].startswith(reason)


def multipart(*parts: str, end: str = "--x--\r\n") -> bytes:
    return "".join(f"--x\r\nContent-Disposition: form-data; {part}\r\n" for part in parts).encode() + end.encode()


@pytest.mark.parametrize(
    ("body", "boundary", "status", "reason"),
    [
        (multipart('name="image"\r\n\r\nphoto.jpg'), "x", 422, "`image` is the text 'photo.jpg', neither a file nor"),
        (multipart('name="image"; filename=""\r\n\r\n'), "x", 422, "`image` is missing: send one image at least"),
        (multipart('name="task"\r\n\r\nbirds'), "x", 422, "`image` is missing: send one image at least"),
        (multipart('name="task"; filename="a.txt"\r\n\r\nbirds'), "x", 422, "`task` is a file: send it as text"),
        (
            multipart('name="photo"; filename="a.png"\r\n\r\nabc'),
            "x",
            422,
            "unknown field 'photo'; known: abstain, image",
        ),
        (
            multipart('name="image"\r\n\r\nabc', end=""),
            "x",
            400,
            "the form breaks off: its closing boundary is",
        ),
        (multipart('name="image"\r\n\r\nabc'), "y", 400, "the boundary of the form's Content-Type is not in its body"),
        (multipart('name="image"\r\n\r\nabc'), "", 400, "the form's Content-Type has no boundary"),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
            "x",
            400,
            "the form cannot be read: The Content-",
        ),
    ],
)
def test_a_form_that_is_not_understood_is_named(
    client: TestClient, body: bytes, boundary: str, status: int, reason: str
) -> None:
    kind = f"multipart/form-data; boundary={boundary}" if boundary else "multipart/form-data"
    response = client.post("/classify", content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)
    assert response.json()["detail"].endswith(f"; this works: {FORM}")


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "the body is empty"),
        (b"photo.jpg", 422, "the body is the text 'photo.jpg', neither a file nor base64 of an image"),
        (b"http://127.0.0.1/cat.png", 422, "the body is a URL, and the service fetches nothing"),
        (gzip.compress(JPEG), 415, "the body: not an image of a known type"),
        (JPEG[: len(JPEG) // 2], 400, "the body: not a readable image"),
    ],
    ids=["empty", "a path", "a URL", "gzip that does not say so", "half an image"],
)
def test_a_body_that_is_no_image_is_named(client: TestClient, content: bytes, status: int, reason: str) -> None:
    response = client.post("/classify?task=birds", content=content)
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)


def test_an_empty_file_is_called_empty(client: TestClient) -> None:
    response = client.post("/classify", files={"image": ("photo.jpg", b"")}, data={"task": "birds"})
    assert refusal(response) == (415, "photo.jpg: the image is empty, 0 bytes: send a PNG, JPEG or WebP file")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("task=birds&topk=3", "unknown query parameter 'topk'; did you mean top_k or task?"),
        ("task=birds&top_k=1&top_k=2", "`top_k` is in the query more than once: send it once"),
        ("task=birds&top_k=abc", "top_k: Input should be a valid integer"),
        ("task=birds&task=cracks", "1 images and 2 times `task`"),
        ("tasks=birds&task=cracks", "send `task`, once or for each image, or `tasks=a,b`"),
    ],
)
def test_a_query_is_never_ignored(client: TestClient, query: str, reason: str) -> None:
    response = client.post(f"/classify?{query}", content=PHOTO)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(reason)


def test_a_field_in_the_query_and_in_the_form_is_refused(client: TestClient) -> None:
    response = client.post("/classify?task=birds", files={"image": PHOTO}, data={"task": "cracks"})
    assert refusal(response) == (422, f"`task` is in the query and in the body: send it once; this works: {FORM}")


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("GET", "/v1/tasks?limit=3", "unknown query parameter 'limit'; /v1/tasks takes none"),
        ("GET", "/v1/tasks/birds?version=2", "unknown query parameter 'version'; /v1/tasks/birds takes none"),
        ("PUT", "/v1/tasks/birds?newclasses=true", "unknown query parameter 'newclasses'; did you mean new_classes?"),
        ("PUT", "/v1/tasks/birds?lane=folded&lane=shared", "`lane` is in the query more than once: send it once"),
        ("DELETE", "/v1/tasks/birds?forced=true", "unknown query parameter 'forced'; did you mean force?"),
    ],
)
def test_other_routes_ignore_no_query_either(keeper: TestClient, method: str, path: str, reason: str) -> None:
    response = keeper.request(method, path)
    assert refusal(response) == (422, reason)


def test_a_misspelt_pin_pins_nothing(keeper: TestClient) -> None:
    unknown = keeper.post("/v1/tasks/birds/pin", json={"pin": False})
    assert refusal(unknown) == (422, "body: unknown field 'pin'; did you mean pinned?")
    assert keeper.post("/v1/tasks/birds/pin", data={"pinned": "false"}).status_code == 422
    assert not keeper.get("/v1/tasks/birds").json()["pinned"]


def test_a_bundle_in_a_form_is_told_how_to_be_sent(keeper: TestClient) -> None:
    response = keeper.put("/v1/tasks/birds", files={"file": b"PK"})
    reason = "a form is not read here: send the file itself, curl -T birds.mosa http://testserver/v1/tasks/birds"
    assert refusal(response) == (415, reason)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/classify/", 404, "unknown path '/classify/'; did you mean /classify?"),
        ("GET", "/v1/tasks/", 404, "unknown path '/v1/tasks/'; did you mean /v1/tasks?"),
        ("POST", "/predict", 404, "unknown path '/predict'; known: /classify, /v1/embed, /v1/tasks"),
        ("POST", "/v1/classify", 404, "unknown path '/v1/classify'; did you mean /classify"),
        ("POST", "/", 405, "POST is not for /: send GET, HEAD; images go to POST /classify"),
        ("GET", "/classify", 405, f"GET is not for /classify: send POST; this works: {FORM}"),
        ("PUT", "/classify?task=birds", 405, f"PUT is not for /classify: send POST; this works: {FORM}"),
    ],
)
def test_a_wrong_path_or_method_names_the_right_one(
    client: TestClient, method: str, path: str, status: int, reason: str
) -> None:
    response = client.request(method, path, content=PHOTO)
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)
