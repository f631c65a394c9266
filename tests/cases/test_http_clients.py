"""Requests as scripts of pages, libraries, proxies and hasty hands send them, beyond those of `test_requests`."""

import io
import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.app import running, scores
from tests.support.tasks import TaskMaker, picture

PHOTO = picture(1)
FORM = "curl -F image=@photo.jpg -F task=digits http://testserver/classify"


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["detail"]


def test_a_urlencoded_file_keeps_its_bytes(client: TestClient) -> None:
    """`curl --data-urlencode image@photo.bmp`: a byte that is a space in a form is no `+` of base64."""
    pixels = np.asarray(Image.open(io.BytesIO(PHOTO))).copy()
    pixels[pixels > 128] = ord(" ")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="bmp")
    body = f"image={quote(buffer.getvalue(), safe='')}&task=birds"
    sent = client.post("/classify", content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    right = client.post("/classify", files={"image": buffer.getvalue()}, data={"task": "birds"})
    assert scores(sent) == pytest.approx(scores(right), abs=1e-6)


def test_a_blob_may_hold_a_canvas_s_data_url(client: TestClient) -> None:
    blob = b"data:image/png;base64," + b64encode(PHOTO)
    sent = client.post("/classify", files={"image": ("blob", blob)}, data={"task": "birds"})
    right = client.post("/classify", files={"image": PHOTO}, data={"task": "birds"})
    assert scores(sent) == scores(right)


@pytest.mark.parametrize("place", ["query", "form"])
def test_tasks_may_come_one_by_one(client: TestClient, place: str) -> None:
    tasks, nothing = {"tasks": ["birds", "cracks"]}, dict[str, list[str]]()
    params, data = (tasks, nothing) if place == "query" else (nothing, tasks)
    response = client.post("/classify", files={"image": PHOTO}, params=params, data=data)
    assert [each["task"] for each in response.json()["results"]] == ["birds", "cracks"]


@pytest.mark.parametrize("kind", ["application/json", "image/jpeg", "application/octet-stream", ""])
def test_a_form_under_another_content_type_is_told(client: TestClient, kind: str) -> None:
    """A script that sets Content-Type itself, and so loses the form's boundary."""
    form = client.build_request("POST", "/classify", files={"image": PHOTO}, data={"task": "birds"})
    response = client.post("/classify", content=form.read(), headers={"content-type": kind})
    said = f"says {kind}" if kind else "is missing"
    status, detail = refusal(response)
    assert status == 400
    assert detail.startswith(f"the body is a form, but its Content-Type {said}: let your client write it; this works: ")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08\x00", "gzip, which Content-Encoding: gzip would have to say"),
        (b"PK\x03\x04\x00\xff", "a zip file"),
        (b"%PDF-1.7\xff", "a PDF"),
        (b"\x00\x00\x00\x20ftypisom\x00", "a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, HTML or XML"),
        (PHOTO.decode("utf-8", "replace").encode(), "an image whose bytes were read as text, which spoils them"),
        (PHOTO.decode("latin-1").encode(), "an image whose bytes were read as text, which spoils them"),
    ],
    ids=["gzip", "zip", "PDF", "video", "SVG", "replaced", "latin-1"],
)
def test_what_is_no_image_is_told_what_it_is(client: TestClient, content: bytes, kind: str) -> None:
    response = client.post("/classify", files={"image": ("a.jpg", content)}, data={"task": "birds"})
    reason = f"a.jpg: not an image of a known type, but {kind}: send a PNG, JPEG or WebP file"
    assert refusal(response) == (415, reason)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, HTML or XML"),
        (b"<!DOCTYPE html><title>Not found</title>" + b" " * 2000, "SVG, HTML or XML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\x00\x00\x00\x20ftypisom\x00", "a video"),
    ],
    ids=["SVG", "a web page", "EPS", "video"],
)
def test_a_body_in_ascii_that_is_another_kind_of_file_is_not_taken_for_base64(
    client: TestClient, content: bytes, kind: str
) -> None:
    reason = f"the body: not an image of a known type, but {kind}: send a PNG, JPEG or WebP file"
    assert refusal(client.post("/classify?task=birds", content=content)) == (415, reason)


@pytest.mark.parametrize(
    ("body", "kind"),
    [([], "a list"), (json.dumps({"task": "birds"}), "a text"), (3, "a number"), (True, "true or false")],
)
def test_json_that_is_no_object_is_told_what_it_is(client: TestClient, body: object, kind: str) -> None:
    status, detail = refusal(client.post("/classify", json=body))
    assert (status, detail.partition(";")[0]) == (422, f"the JSON is {kind}, not an object")


@pytest.mark.parametrize("query", ["topk=3", "top_k=0", "top_k=1&top_k=2"])
def test_a_query_that_is_not_understood_is_answered_with_a_command(client: TestClient, query: str) -> None:
    status, detail = refusal(client.post(f"/classify?task=birds&{query}", content=PHOTO))
    assert status == 422
    assert detail.endswith(f"; this works: {FORM}")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/tasks/birds/", "did you mean /v1/tasks/birds?"),
        ("/docs/", "did you mean /docs?"),
        ("/redoc", "did you mean /docs?"),
        ("/ready", "did you mean /readyz?"),
        ("/metric", "did you mean /metrics?"),
    ],
)
def test_a_path_beside_one_is_told(client: TestClient, path: str, hint: str) -> None:
    status, detail = refusal(client.get(path))
    assert status == 404
    assert detail.startswith(f"unknown path '{path}'; {hint}")


def test_known_paths_are_listed_once(client: TestClient) -> None:
    _, detail = refusal(client.get("/xyz.php"))
    assert detail.count("/v1/tasks/{name},") == 1


def test_a_key_may_come_beside_a_proxy_s_own_authorization(maker: TaskMaker) -> None:
    with running(maker.root, api_keys="one", admin_keys="root", prefetch=0) as client:
        proxy = {"authorization": "Bearer token-of-the-proxy"}
        assert client.get("/v1/tasks", headers=proxy | {"x-api-key": "one"}).status_code == 200
        assert client.delete("/v1/tasks/none", headers=proxy | {"x-api-key": "root"}).status_code == 404
        assert client.delete("/v1/tasks/none", headers=proxy | {"x-api-key": "one"}).status_code == 403
        assert client.get("/v1/tasks", headers=proxy).status_code == 401


def test_a_page_may_add_the_headers_of_its_tracing(maker: TaskMaker) -> None:
    with running(maker.root, cors_origins="https://app.example", prefetch=0) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "traceparent,baggage"}
        preflight = client.options("/classify", headers={"origin": "https://app.example", **asked})
        assert preflight.status_code == 200
        assert "traceparent" in preflight.headers["access-control-allow-headers"]


def test_a_request_that_is_refused_before_its_route_is_counted_as_none(maker: TaskMaker) -> None:
    """Around the app lies another server, whose one route has an empty path."""
    with running(maker.root, prefetch=0, max_upload=1000) as client:
        outer = TestClient(Starlette(routes=[Mount("/", client.app)]))
        assert outer.post("/classify", content=bytes(2000)).status_code == 413
        assert 'route=""' not in client.get("/metrics").text


def test_a_name_that_no_task_can_have_is_told_the_rule(admin: TestClient) -> None:
    status, reason = refusal(admin.put("/v1/tasks/Birds!", content=b"x"))
    assert status == 422
    assert reason == "name: Birds! is no task: lower-case letters, digits, '.', '_', '-', a letter first, 64 at most"
