"""Requests as people send them: with curl, a browser, or the client of another service."""

import gzip
import json
import zlib
from base64 import b64encode, encodebytes, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.client import Client
from mosa_deploy.errors import ServiceError
from tests.support.app import behind_prefix, put, running
from tests.support.documents import command_lines, shell, to_server
from tests.support.requests import BASE64, FORM, JPEG, PHOTO, RIGHT, URLENCODED, label, refusal
from tests.support.tasks import TaskMaker, packed
from tests.support.walker import ROOT


@pytest.mark.parametrize("kind", ["image/jpeg", "image/*", "application/octet-stream", "binary/octet-stream", None])
def test_an_image_may_be_the_whole_body(client: TestClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    assert label(client.post("/classify?task=birds&top_k=3", content=JPEG, headers=headers)) == RIGHT


def test_curl_s_data_binary_needs_no_content_type(client: TestClient) -> None:
    assert label(client.post("/classify?task=birds", content=JPEG, headers=URLENCODED)) == RIGHT


def test_curl_s_d_which_drops_bytes_is_told_from_data_binary(client: TestClient) -> None:
    response = client.post("/classify?task=birds", content=JPEG.translate(None, b"\0\r\n"), headers=URLENCODED)
    reason = "curl's -d drops line breaks and zeros from an image: send it with --data-binary"
    assert refusal(response) == (400, f"{reason}; this works: {FORM}")


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        encodebytes(PHOTO).decode(),
        encodebytes(PHOTO).decode().replace("\n", "\r\n"),
        urlsafe_b64encode(PHOTO).decode(),
        BASE64.rstrip("="),
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=utf-8;BASE64,{quote(BASE64, safe='')}",
        f"\ufeff{BASE64}\n",
    ],
    ids=[
        "plain",
        "in lines",
        "lines of Windows",
        "of URLs",
        "no padding",
        "data URL",
        "escaped data URL",
        "with a BOM",
    ],
)
@pytest.mark.parametrize("place", ["JSON", "multipart form", "urlencoded form"])
def test_an_image_may_be_base64(client: TestClient, text: str, place: str) -> None:
    fields = {"image": text, "task": "birds"}
    forms: dict[str, dict[str, Any]] = {
        "JSON": {"json": fields},
        "multipart form": {"files": {name: (None, value) for name, value in fields.items()}},
        "urlencoded form": {"data": fields},
    }
    assert label(client.post("/classify", **forms[place])) == RIGHT


def test_base64_may_be_a_file_or_the_body_too(client: TestClient) -> None:
    as_file = client.post("/classify", files={"image": ("photo.b64", BASE64)}, data={"task": "birds"})
    assert label(as_file) == RIGHT
    assert label(client.post("/classify?task=birds", content=BASE64)) == RIGHT


def test_base64_whose_plus_was_not_escaped_is_read(client: TestClient) -> None:
    assert "+" in BASE64
    response = client.post("/classify", content=f"task=birds&image={BASE64}", headers=URLENCODED)
    assert label(response) == RIGHT


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "text/json", None])
def test_json_is_known_by_its_content(client: TestClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else URLENCODED
    body = json.dumps({"image": BASE64, "task": "birds", "top_k": 1})
    assert label(client.post("/classify", content=f"\n {body}", headers=headers)) == RIGHT


def test_json_from_windows_with_a_bom_is_read(client: TestClient) -> None:
    body = json.dumps({"image": BASE64, "task": "birds"}).encode("utf-8-sig")
    assert label(client.post("/classify", content=body, headers={"content-type": "application/json"})) == RIGHT


def test_images_in_json_are_answered_by_a_list_even_if_there_is_one(client: TestClient, maker: TaskMaker) -> None:
    texts = [b64encode(image).decode() for image in maker.images[:2]]
    one = client.post("/classify", json={"images": texts[:1], "task": "birds"}).json()["results"]
    two = client.post("/classify", json={"images": texts, "task": ["birds", "cracks"]}).json()["results"]
    every = client.post("/classify", json={"image": texts[0], "tasks": ["birds", "cracks"]}).json()["results"]
    found = [[(each["task"], each["predictions"][0]["label"]) for each in results] for results in (one, two, every)]
    assert found == [
        [("birds", "class-0")],
        [("birds", "class-0"), ("cracks", "class-2")],
        [("birds", "class-0"), ("cracks", "class-1")],
    ]


@pytest.mark.parametrize("name", ["image", "images", "file", "files", "image[]", "files[]", "images[0]"])
def test_the_image_may_have_the_name_that_other_services_use(client: TestClient, name: str) -> None:
    assert label(client.post("/classify", files={name: ("a.png", PHOTO)}, data={"task": "birds"})) == RIGHT


def test_a_part_without_a_filename_may_hold_an_image(client: TestClient) -> None:
    assert label(client.post("/classify", files={"image": (None, JPEG), "task": (None, "birds")})) == RIGHT


@pytest.mark.parametrize("task", ["birds\r\n", " birds ", "\tbirds", "birds\ufeff"])
@pytest.mark.parametrize("place", ["form", "query", "JSON"])
def test_spaces_around_a_task_s_name_are_nothing(client: TestClient, task: str, place: str) -> None:
    response = {
        "form": lambda: client.post("/classify", files={"image": PHOTO}, data={"task": task}),
        "query": lambda: client.post("/classify", content=PHOTO, params={"task": task}),
        "JSON": lambda: client.post("/classify", json={"image": BASE64, "task": task}),
    }[place]()
    assert label(response) == RIGHT


@pytest.mark.parametrize("task", ["Birds", "BIRDS\r\n", "bIRDS"])
def test_a_name_in_other_letters_is_answered_with_the_right_one(client: TestClient, task: str) -> None:
    response = client.post("/classify", files={"image": PHOTO}, data={"task": task})
    assert refusal(response) == (404, f"unknown task '{task.strip()}'; did you mean birds?")
    assert client.get("/v1/tasks/Birds").json()["detail"] == "unknown task 'Birds'; did you mean birds?"


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(JPEG)),
        ("x-gzip", gzip.compress(JPEG)),
        ("GZIP", gzip.compress(JPEG[:500]) + gzip.compress(JPEG[500:])),
        ("deflate", zlib.compress(JPEG)),
        ("deflate", zlib.compress(JPEG)[2:-4]),
        ("identity", JPEG),
    ],
    ids=["gzip", "its old name", "in two members", "deflate", "deflate without its head", "not at all"],
)
def test_a_compressed_body_is_read(client: TestClient, encoding: str, packed: bytes) -> None:
    headers = {"content-type": "image/jpeg", "content-encoding": encoding}
    assert label(client.post("/classify?task=birds", content=packed, headers=headers)) == RIGHT


@pytest.mark.parametrize(
    ("encoding", "packed", "status", "reason"),
    [
        ("br", JPEG, 415, "Content-Encoding: br is not read: send the body as it is, or in gzip, deflate"),
        ("gzip, gzip", JPEG, 415, "Content-Encoding: gzip, gzip is not read"),
        ("gzip", JPEG, 400, "the body is not whole gzip, as Content-Encoding says: send it as it is"),
        ("gzip", gzip.compress(JPEG)[:-100], 400, "the body is not whole gzip"),
        ("gzip", gzip.compress(bytes(50_000_000)), 413, "the body has more than 10485760 bytes"),
    ],
    ids=["brotli", "twice", "it is not", "breaks off", "bomb"],
)
def test_a_compressed_body_that_cannot_be_read_is_refused(
    client: TestClient, encoding: str, packed: bytes, status: int, reason: str
) -> None:
    headers = {"content-type": "image/jpeg", "content-encoding": encoding}
    response = client.post("/classify?task=birds", content=packed, headers=headers)
    assert response.status_code == status
    assert response.json()["detail"].startswith(reason)


def test_a_page_of_another_site_may_ask_if_the_setting_names_it(maker: TaskMaker) -> None:
    with running(maker.root, cors_origins="https://App.example/", api_keys="one", max_upload=50_000) as client:
        page = {"origin": "https://app.example"}
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-api-key"}
        preflight = client.options("/classify", headers=page | asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page["origin"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        good = client.post("/classify?task=birds", content=PHOTO, headers=page | {"x-api-key": "one"})
        without_key = client.post("/classify?task=birds", content=PHOTO, headers=page)
        too_large = client.post("/classify?task=birds", content=bytes(60_000), headers=page)
        assert [each.status_code for each in (good, without_key, too_large)] == [200, 401, 413]
        for response in (good, without_key, too_large):
            assert response.headers["access-control-allow-origin"] == page["origin"]
        stranger = client.options("/classify", headers={"origin": "https://other.example"} | asks)
        assert stranger.status_code == 400
        assert "access-control-allow-origin" not in stranger.headers


def test_without_the_setting_no_other_page_may_ask(client: TestClient) -> None:
    response = client.post("/classify?task=birds", content=PHOTO, headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_task_tells_how_good_it_is_since_when_and_what_it_sees(admin: TestClient, newer: Archive) -> None:
    bundle = newer.bundle()
    record = bundle.record.model_copy(update={"metrics": {"validation_accuracy": 0.875}})
    put(admin, "birds", packed(Bundle(record, bundle.tensors, bundle.canary)))
    task = admin.get("/v1/tasks/birds").json()
    assert (task["accuracy"], task["measured_on"]) == (0.875, "validation images of its tuning (probe)")
    assert task["classes"] == list(record.classes)
    assert task["preprocess"] == record.preprocess.model_dump(mode="json")
    for date in (task["added"], task["served_since"]):
        assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(date) < timedelta(minutes=5)


def test_what_is_not_known_of_a_task_is_null(client: TestClient) -> None:
    task = client.get("/v1/tasks/birds").json()
    assert (task["accuracy"], task["measured_on"]) == (None, None)


def test_the_commands_of_the_docs_work(client: TestClient, tmp_path: Path) -> None:
    for name, content in (("photo.jpg", JPEG), ("a.png", PHOTO), ("b.png", PHOTO)):
        (tmp_path / name).write_bytes(content)
    lines = command_lines(ROOT / "docs" / "http-api.md")
    with behind_prefix(client) as address:
        for line in lines:
            ours = line.replace("digits", "birds").replace("flowers", "cracks")
            answer = json.loads(shell(to_server(ours, address), tmp_path))
            first = answer.get("results", [answer])[0]
            assert first.get("classes") or first["predictions"][0]["label"] == RIGHT, line


def test_a_service_that_refuses_a_large_body_is_asked_once(maker: TaskMaker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mosa_deploy.requests")
    with running(maker.root, max_upload=50_000) as small, behind_prefix(small) as address, Client(address) as client:
        for size in (60_000, 20_000_000):
            with pytest.raises(ServiceError, match="more than 50000 bytes"):
                client.classify(bytes(size), "birds")
    assert len([record for record in caplog.records if record.name == "mosa_deploy.requests"]) == 2
